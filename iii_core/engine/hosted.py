"""Services of an engine that a new configuration may start, replace and stop while the engine runs."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Hashable, Mapping
from typing import Any, Generic, Protocol, TypeVar

import trio

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
S = TypeVar("S")
S_contra = TypeVar("S_contra", contravariant=True)


class Service(Protocol[S_contra]):
    """Runs until ``stop`` is set or it is cancelled; ``started`` gives what others may see, once it is usable."""

    def __call__(
        self, settings: S_contra, stop: trio.Event, *, task_status: trio.TaskStatus[Any]
    ) -> Awaitable[None]: ...


class _Running(Generic[S]):
    def __init__(self, settings: S) -> None:
        self.settings = settings
        self.stop = trio.Event()
        self.scope = trio.CancelScope()
        self.done = trio.Event()
        self.value: Any = None


class HostedSet(Generic[K, S]):
    """A set of running services by key, changed as a whole: it has what was wanted last, or what it had before.

    Args:
        nursery: where the services run. A service that fails after its start is logged and gone; others run on.
        service: how to run one.
        grace: seconds that a service has to end after its ``stop`` before it is cancelled.
    """

    def __init__(self, nursery: trio.Nursery, service: Service[S], *, grace: float) -> None:
        self._nursery = nursery
        self._service = service
        self._grace = grace
        self._running: dict[K, _Running[S]] = {}

    @property
    def values(self) -> dict[K, Any]:
        """What the running services gave at their start."""
        return {key: running.value for key, running in self._running.items()}

    @property
    def settings(self) -> dict[K, S]:
        """What the running services run with."""
        return {key: running.settings for key, running in self._running.items()}

    async def add(self, key: K, settings: S) -> None:
        """Start one more service. Raises what keeps it from starting."""
        await self._start(key, settings)

    async def apply(self, wanted: Mapping[K, S]) -> None:
        """Run exactly what is wanted. Services whose settings did not change are not touched.

        Added ones start first, then changed ones are replaced, then others stop. If one does not start, everything is
        put back and its error is raised. Not for two tasks at once.
        """
        before = {key: running.settings for key, running in self._running.items()}
        try:
            for key in wanted.keys() - before.keys():
                await self._start(key, wanted[key])
            for key in wanted.keys() & before.keys():
                if wanted[key] != before[key]:
                    await self._stop(key)
                    await self._start(key, wanted[key])
        except BaseException:
            with trio.move_on_after(self._grace + 30, shield=True):
                await self._restore(before)
            raise
        for key in before.keys() - wanted.keys():
            await self._stop(key)

    async def _restore(self, before: Mapping[K, S]) -> None:
        for key, running in list(self._running.items()):
            if key not in before or before[key] != running.settings:
                await self._stop(key)
        for key in before.keys() - self._running.keys():
            try:
                await self._start(key, before[key])
            except Exception:  # the error of the change itself is what the caller must see
                log.exception("could not put back %s", key)

    async def _start(self, key: K, settings: S) -> None:
        running = _Running(settings)
        running.value = await self._nursery.start(self._run, key, running, name=f"service {key}")
        if not running.done.is_set():
            self._running[key] = running

    async def _stop(self, key: K) -> None:
        running = self._running.pop(key, None)
        if running is None:
            return
        running.stop.set()
        try:
            with trio.move_on_after(self._grace):
                await running.done.wait()
        finally:
            running.scope.cancel()
        await running.done.wait()

    async def _run(self, key: K, running: _Running[S], *, task_status: trio.TaskStatus[Any]) -> None:  # noqa: ASYNC128 - the service calls it
        status = _Started(task_status)
        try:
            with running.scope:
                await self._service(running.settings, running.stop, task_status=status)
        except Exception:  # one service must not end the others
            if not status.called:
                raise
            log.exception("%s failed and is gone", key)
        finally:
            running.done.set()
            if self._running.get(key) is running:
                del self._running[key]


class _Started(trio.TaskStatus[Any]):
    """Remembers whether the service became usable: an error before is its caller's, one after is only logged."""

    def __init__(self, inner: trio.TaskStatus[Any]) -> None:
        self._inner = inner
        self.called = False

    def started(self, value: Any = None) -> None:
        self.called = True
        self._inner.started(value)
