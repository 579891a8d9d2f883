"""All managed workers of one project: which there are, and their supervisors."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import trio

from iii_core.errors import ConfigError, ConfigIoError, IIIError, PluginMissing, UnsupportedOperation
from iii_core.project.edit import not_in_config
from iii_core.workers.check import check_sandbox
from iii_core.workers.install import WRITABLE_FOLDER, folders_of
from iii_core.workers.live import CLEANUP_LIMIT
from iii_core.workers.ports import open_ports
from iii_core.workers.run import STOP_GRACE, RunPlaces
from iii_core.workers.saving import SnapshotKeeper
from iii_core.workers.snapshots import SNAPSHOTS_FOLDER, SnapshotStore
from iii_core.workers.spec import sandbox_id
from iii_core.workers.supervisor import Supervisor
from iii_core.workers.validity import check_spec
from iii_core.workers.writable import drop_all, leftovers, set_aside

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from iii_core.workers.services import WorkerServices
    from iii_core.workers.spec import WorkerSpec

STOP_ALL_LIMIT: Final = STOP_GRACE + 20.0
KILL_LIMIT: Final = CLEANUP_LIMIT + 5.0
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Supervised:
    supervisor: Supervisor
    scope: trio.CancelScope
    ended: trio.Event


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
        self._forgotten: set[str] = set()
        self._removed: list[Path] = []

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
            raise not_in_config(name, self._workers) from None

    async def drop_snapshot(self, name: str) -> bool:
        """Delete the snapshot of a worker, declared or not; whether there was one. Raises `ConfigIoError`."""
        entry = self._workers.get(name)
        if entry is not None:
            return await entry.supervisor.snapshots.drop()
        return await SnapshotKeeper(name, SnapshotStore(self._places(name).snapshots)).drop()

    async def apply(self, specs: Mapping[str, WorkerSpec]) -> None:
        """Make the declared workers those of ``specs``: start new ones, restart changed ones, end those gone.

        Returns when those gone have ended, also when cancelled meanwhile; the others go on in the background.

        Raises:
            ConfigIoError: what a forgotten worker has written cannot be set aside.
        """
        gone = [name for name in self._workers if name not in specs or name in self._forgotten]
        anew = [spec for name, spec in specs.items() if name in self._forgotten]  # removed, and added again
        for name, spec in specs.items():
            if name in self._forgotten:
                continue
            if name not in self._workers:
                self._add(spec)
            elif self._workers[name].supervisor.spec != spec:
                supervisor = self._workers[name].supervisor
                supervisor.replace(await self._checked(spec, supervisor.spec))
            else:
                self._workers[name].supervisor.keep()
        await self._end(gone)
        try:
            self._set_aside()
        finally:
            for spec in anew:
                self._add(spec)

    def forget(self, name: str) -> None:
        """A worker was removed: the next `apply` ends it and sets aside what it has written, even if it is back."""
        self._forgotten.add(name)

    async def find_removed(self) -> None:
        """Find what an earlier engine has set aside and not deleted; for `delete_removed`."""
        for folder in (WRITABLE_FOLDER, SNAPSHOTS_FOLDER):
            self._removed += await trio.to_thread.run_sync(leftovers, self._state_dir / folder)

    async def delete_removed(self) -> None:
        """Delete what was set aside, which may take long. Raises `ConfigIoError`; what is left, the next engine finds.

        Once it has begun it cannot be cancelled.
        """
        removed, self._removed = self._removed, []
        await trio.to_thread.run_sync(drop_all, removed)

    async def sweep(self) -> None:
        """`delete_removed`, where nobody waits for it."""
        try:
            await self.delete_removed()
        except ConfigIoError as error:
            _log.warning("what is left of a removed worker stays: [%s] %s", error.code, error.message)

    async def _checked(self, spec: WorkerSpec, old: WorkerSpec) -> WorkerSpec:
        """The spec, with a problem where it can never work here: a running worker must not end for that."""
        if spec.problem is None:
            try:
                check_spec(spec, self._services.engine.port)
                await check_sandbox(spec, self._services.sandboxes)
                async with open_ports([port for port in spec.ports if port not in old.ports]):
                    pass
            except (ConfigError, UnsupportedOperation, PluginMissing) as error:
                return replace(spec, problem=error)
            except IIIError:  # of today, and no reason against the spec: its run will tell
                return spec
        return spec

    async def stop_all(self) -> None:
        """End every worker in an orderly way, all at once, within a bound."""
        await self._end(list(self._workers))
        try:
            self._set_aside()
        except ConfigIoError as error:
            _log.warning("what a removed worker has written stays: [%s] %s", error.code, error.message)

    def _add(self, spec: WorkerSpec) -> None:
        supervisor = Supervisor(
            spec, sandbox_id(str(self._project), spec.name), self._services, self._places(spec.name)
        )
        entry = _Supervised(supervisor, trio.CancelScope(), trio.Event())
        self._workers[spec.name] = entry
        self._nursery.start_soon(self._supervise, entry, name=f"worker {spec.name}")

    async def _supervise(self, entry: _Supervised) -> None:
        try:
            with entry.scope:
                await entry.supervisor.snapshots.sweep()  # what an engine that died has left
                await entry.supervisor.run()
        finally:
            entry.ended.set()

    async def _end(self, names: list[str]) -> None:
        ending = [self._workers.pop(name) for name in names]
        with trio.move_on_after(STOP_ALL_LIMIT, shield=True), suppress(IIIError):  # nobody else would wait for them
            for entry in ending:
                entry.supervisor.request_stop()
            for entry in ending:
                await entry.supervisor.stopped()
        for entry in ending:
            entry.scope.cancel()
        with trio.move_on_after(KILL_LIMIT, shield=True):
            for entry in ending:
                await entry.ended.wait()

    def _set_aside(self) -> None:
        while self._forgotten:
            for folder in folders_of(self._state_dir, self._forgotten.pop()):
                self._removed += set_aside(folder)

    def _places(self, name: str) -> RunPlaces:
        writable, snapshots = folders_of(self._state_dir, name)
        return RunPlaces(
            logs=self._state_dir / "logs" / name,
            writable=writable,
            console=self._state_dir / "logs" / name / "console.log",
            snapshots=snapshots,
        )
