"""All managed workers of one project: which there are, and their supervisors."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import trio

from iii_core.errors import ConfigError, IIIError, PluginMissing, UnsupportedOperation
from iii_core.project.edit import not_in_config
from iii_core.workers.check import check_sandbox
from iii_core.workers.run import STOP_GRACE, RunPlaces
from iii_core.workers.snapshots import SNAPSHOTS_FOLDER
from iii_core.workers.spec import sandbox_id
from iii_core.workers.supervisor import Supervisor
from iii_core.workers.validity import check_spec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from iii_core.workers.services import WorkerServices
    from iii_core.workers.spec import WorkerSpec

STOP_ALL_LIMIT: Final = STOP_GRACE + 20.0


@dataclass(slots=True)
class _Supervised:
    supervisor: Supervisor
    scope: trio.CancelScope


class WorkerManager:
    """Keeps one supervisor per declared worker. Lives in the nursery it is given; not thread-safe.

    Args:
        project: the project's folder; its path is part of every sandbox id.
        state_dir: the project's ``.iii`` folder.
    """

    def __init__(self, nursery: trio.Nursery, services: WorkerServices, *, project: Path, state_dir: Path) -> None:
        self._nursery = nursery
        self._services = services
        self._project = project
        self._state_dir = state_dir
        self._workers: dict[str, _Supervised] = {}

    @property
    def workers(self) -> dict[str, Supervisor]:
        """The supervisors by name, in order of declaration."""
        return {name: entry.supervisor for name, entry in self._workers.items()}

    def get(self, name: str) -> Supervisor:
        """The supervisor of one worker.

        Raises:
            WorkerNotInstalled: config.yaml names no such managed worker.
        """
        try:
            return self._workers[name].supervisor
        except KeyError:
            raise not_in_config(name) from None

    async def apply(self, specs: Mapping[str, WorkerSpec]) -> None:
        """Make the declared workers those of ``specs``: start new ones, restart changed ones, end those gone.

        Returns when those gone have ended; the others go on in the background.
        """
        gone = [name for name in self._workers if name not in specs]
        for name, spec in specs.items():
            if name not in self._workers:
                self._add(spec)
            elif self._workers[name].supervisor.spec != spec:
                self._workers[name].supervisor.replace(await self._checked(spec))
            else:
                self._workers[name].supervisor.keep()
        await self._end(gone)

    async def _checked(self, spec: WorkerSpec) -> WorkerSpec:
        """The spec, with a problem where it can never work here: a running worker must not end for that."""
        if spec.problem is None:
            try:
                check_spec(spec, self._services.engine.port)
                await check_sandbox(spec, self._services.sandboxes)
            except (ConfigError, UnsupportedOperation, PluginMissing) as error:
                return replace(spec, problem=error)
            except IIIError:  # of today, and no reason against the spec: its run will tell
                return spec
        return spec

    async def stop_all(self) -> None:
        """End every worker in an orderly way, all at once, within a bound."""
        await self._end(list(self._workers))

    def _add(self, spec: WorkerSpec) -> None:
        supervisor = Supervisor(
            spec, sandbox_id(str(self._project), spec.name), self._services, self._places(spec.name)
        )
        entry = _Supervised(supervisor, trio.CancelScope())
        self._workers[spec.name] = entry
        self._nursery.start_soon(self._supervise, entry, name=f"worker {spec.name}")

    async def _supervise(self, entry: _Supervised) -> None:
        with entry.scope:
            await trio.to_thread.run_sync(entry.supervisor.snapshots.sweep)  # what an engine that died has left
            await entry.supervisor.run()

    async def _end(self, names: list[str]) -> None:
        ending = [self._workers.pop(name) for name in names]
        with trio.move_on_after(STOP_ALL_LIMIT), suppress(IIIError):
            for entry in ending:
                entry.supervisor.request_stop()
            for entry in ending:
                await entry.supervisor.stopped()
        for entry in ending:
            entry.scope.cancel()

    def _places(self, name: str) -> RunPlaces:
        return RunPlaces(
            logs=self._state_dir / "logs" / name,
            writable=self._state_dir / "writable" / name,
            console=self._state_dir / "logs" / name / "console.log",
            snapshots=self._state_dir / SNAPSHOTS_FOLDER / name,
        )
