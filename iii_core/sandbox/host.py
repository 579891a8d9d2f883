"""The sandbox host: the one place that opens sandbox backends and starts their processes (design: process model).

Why a process of its own: libvirt's event loop and the role of child subreaper are process-global and must not leak into
a program that embeds the engine; a parent-death signal follows the thread that forked; and a crash inside a backend's C
library then costs no engine. An engine opens one with `iii_core.sandbox.hostclient.open_sandbox_host`; tests may run
the same thing in their own process with `open_inline_host`. Both live exactly as long as their ``async with`` block:
when it ends, or when the engine dies, every sandbox is destroyed and its writable layer kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from iii_core.errors import BackendUnavailable, ConfigError, PluginMissing
from iii_core.link.nursery import open_service_nursery
from iii_core.records import ProbeResult

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from iii_core.records import OpenContext, SandboxBackend
    from iii_core.sandbox.port import SandboxDriver

PROBE_TIMEOUT = 30.0


class SandboxHost(ABC):
    """An open sandbox host. Methods may be called concurrently."""

    @abstractmethod
    async def driver(self, backend: str) -> SandboxDriver:
        """The driver of a backend, opened at the first call; later calls give the same object.

        Raises:
            PluginMissing: no installed plugin declares that backend.
            ConfigError: its settings are not valid.
            BackendUnavailable: it cannot work on this machine.
        """

    @abstractmethod
    async def probe(self, backend: str) -> ProbeResult:
        """Whether the backend can work on this machine; bounded by `PROBE_TIMEOUT`. Raises `PluginMissing`."""

    @abstractmethod
    async def wait_died(self) -> str:
        """Wait until the host has ended although nobody asked it to; returns how (``"signal 9"``).

        Every call then raises `iii_core.errors.SandboxHostDied`; what the host left behind has been swept.
        """


class BackendPool:
    """Opens each backend once, in a task of its own, and closes them all when its nursery ends."""

    def __init__(
        self,
        nursery: trio.Nursery,
        backends: Mapping[str, SandboxBackend],
        context: OpenContext,
        config: Mapping[str, Any],
    ) -> None:
        self._nursery = nursery
        self._backends = backends
        self._context = context
        self._config = config
        self._opening = trio.Lock()
        self._drivers: dict[str, SandboxDriver] = {}

    async def driver(self, name: str) -> SandboxDriver:
        """See `SandboxHost.driver`."""
        async with self._opening:
            if name not in self._drivers:
                record = self._record(name)
                self._drivers[name] = await self._nursery.start(self._keep_open, record, self._settings(record))
            return self._drivers[name]

    async def probe(self, name: str) -> ProbeResult:
        """See `SandboxHost.probe`."""
        record = self._record(name)
        with trio.move_on_after(PROBE_TIMEOUT):
            return await record.probe(self._settings(record), self._context)
        return ProbeResult(ok=False, reason=f"the probe of {name} did not end within {PROBE_TIMEOUT:g} s")

    async def _keep_open(
        self,
        record: SandboxBackend,
        settings: msgspec.Struct,
        *,
        task_status: trio.TaskStatus[SandboxDriver] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        async with record.open(settings, self._context) as driver:
            task_status.started(driver)
            await trio.sleep_forever()

    def _record(self, name: str) -> SandboxBackend:
        if name in self._backends:
            return self._backends[name]
        known = ", ".join(sorted(self._backends)) or "none"
        raise PluginMissing(
            f"no installed plugin provides the sandbox backend {name!r}",
            hint=f"installed backends: {known}",
            details={"backend": name},
        )

    def _settings(self, record: SandboxBackend) -> msgspec.Struct:
        try:
            return msgspec.convert(self._config.get(record.name, {}), record.config)
        except msgspec.ValidationError as error:
            raise ConfigError(
                f"settings of the sandbox backend {record.name!r}: {error}", details={"backend": record.name}
            ) from error


class _InlineHost(SandboxHost):
    def __init__(self, pool: BackendPool) -> None:
        self._pool = pool

    async def driver(self, backend: str) -> SandboxDriver:
        return await self._pool.driver(backend)

    async def probe(self, backend: str) -> ProbeResult:
        return await self._pool.probe(backend)

    async def wait_died(self) -> str:
        await trio.sleep_forever()
        raise AssertionError("unreachable")


@asynccontextmanager
async def open_inline_host(
    backends: Mapping[str, SandboxBackend], context: OpenContext, config: Mapping[str, Any] | None = None
) -> AsyncGenerator[SandboxHost]:
    """Run a sandbox host inside this process: for tests, and for backends that start no processes.

    Args:
        backends: the backends by name, such as ``PluginHost.collect(SandboxBackend)`` gives.
        context: folders and environment.
        config: settings by backend name, as plain data.
    """
    async with open_service_nursery() as nursery:
        yield _InlineHost(BackendPool(nursery, backends, context, config or {}))


def unavailable(backend: str, result: ProbeResult) -> BackendUnavailable:
    """The error for a backend whose probe failed."""
    return BackendUnavailable(
        f"the sandbox backend {backend} cannot work here: {result.reason}",
        hint=result.hint,
        details={"backend": backend, **result.details},
    )
