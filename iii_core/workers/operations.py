"""The operations of the control socket: what ``iii worker …`` can ask a running engine."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec
import trio

from iii_core.control.server import Operation
from iii_core.errors import IIIError, LinkError, SandboxDied, UsageError, leading_error
from iii_core.project.edit import not_in_config
from iii_core.project.lock import pin_of
from iii_core.workers.copy import CopyRequest, copy_of_worker
from iii_core.workers.exec import ExecRequest, exec_in_worker
from iii_core.workers.install import add_worker, remove_from_project
from iii_core.workers.logs import tails
from iii_core.workers.stats import stats_of

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from iii_core.control.server import Call
    from iii_core.engine.observe import WorkerInfo
    from iii_core.project.config import ProjectConfig, WorkerEntry
    from iii_core.project.locate import Project
    from iii_core.project.lock import Lock
    from iii_core.workers.image_service import ImageService
    from iii_core.workers.manager import WorkerManager
    from iii_core.workers.supervisor import Supervisor

READY_TIMEOUT = 120.0  # spec worker-cli §0.3
LOG_TAIL_LINES = 10
A = TypeVar("A")


class Application(Protocol):
    """What the operations need of the running program."""

    project: Project
    manager: WorkerManager
    images: ImageService

    @property
    def config(self) -> ProjectConfig:
        """The configuration in force."""
        ...

    @property
    def lock(self) -> Lock:
        """The pins in force."""
        ...

    async def reload(self) -> None:
        """Take up config.yaml as it is now. Raises `ConfigError`; what was in force stays then.

        Goes on if its caller is cancelled.
        """
        ...

    async def forget_worker(self, name: str) -> None:
        """Take up that a worker is out of config.yaml: end it, and delete what it has written. Raises as `reload`.

        Goes on if its caller is cancelled.
        """
        ...

    async def check_worker(self, entry: WorkerEntry) -> None:
        """See `iii_core.workers.check.check_entry`."""
        ...

    def engine_status(self) -> dict[str, Any]:
        """``engine.status``."""
        ...

    def external_workers(self) -> Iterable[WorkerInfo]:
        """The connected workers that iii does not run."""
        ...

    def is_engine_worker(self, name: str) -> bool:
        """Whether the engine itself answers to this name."""
        ...


class _Add(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sources: list[str]
    force: bool = False
    reset_config: bool = False
    wait: bool = True
    timeout: float = READY_TIMEOUT


class _Names(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    names: list[str]


class _Start(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    wait: bool = True
    timeout: float = READY_TIMEOUT
    cold: bool = False


class _Snapshot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    remove: bool = False
    timeout: float = READY_TIMEOUT


class _Name(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str


class WorkerOperations:
    """The operations over one application."""

    def __init__(self, application: Application) -> None:
        self._app = application

    def table(self) -> dict[str, Operation]:
        """The operations by name, for `iii_core.control.server.serve_control`."""
        return {
            "engine.status": Operation(self.engine_status),
            "worker.add": Operation(self.add),
            "worker.copy": Operation(self.copy, streaming=True),
            "worker.exec": Operation(self.exec, streaming=True),
            "worker.list": Operation(self.list),
            "worker.remove": Operation(self.remove),
            "worker.restart": Operation(self.restart),
            "worker.snapshot": Operation(self.snapshot),
            "worker.start": Operation(self.start),
            "worker.stats": Operation(self.stats),
            "worker.status": Operation(self.status),
            "worker.stop": Operation(self.stop),
        }

    async def engine_status(self, call: Call) -> dict[str, Any]:
        """What this engine is and where it listens."""
        await trio.lowlevel.checkpoint()
        return self._app.engine_status()

    async def list(self, call: Call) -> dict[str, Any]:
        """One row per declared worker, and one per worker that connected from outside by itself."""
        await trio.lowlevel.checkpoint()
        return {
            "workers": [self._row(entry) for entry in self._app.config.workers],
            "external": [_external_row(worker) for worker in self._app.external_workers()],
        }

    async def status(self, call: Call) -> dict[str, Any]:
        """Everything known of one worker."""
        name = _arguments(call, _Name).name
        entry = self._entry(name)
        folder = self._app.project.logs_dir(name)
        await trio.lowlevel.checkpoint()
        return {
            **(self._supervisor(name).as_json() if entry.managed else self._row(entry)),
            "snapshot": self._supervisor(name).snapshots.store.facts() if entry.managed else None,
            "type": entry.kind,
            "source": entry.image or entry.worker_path,
            "pin": pin_of(self._app.lock, name),
            "config_path": str(self._app.project.config_path),
            "line": entry.line,
            "engine": self._app.engine_status(),
            "logs": str(folder),
            **tails(folder, LOG_TAIL_LINES),
        }

    async def stats(self, call: Call) -> dict[str, Any]:
        """What the named workers' sandboxes use, or all of them; see `iii_core.workers.stats`."""
        names = _arguments(call, _Names).names or list(self._app.manager.workers)
        return {"workers": await stats_of([self._supervisor(name) for name in names])}

    async def add(self, call: Call) -> dict[str, Any]:
        """Install and start; each source stands for itself, a failed one does not undo the others."""
        request = _arguments(call, _Add)
        rows: list[dict[str, Any]] = []
        for source in request.sources:
            rows.append({"source": source, **await self._add_one(call, request, source)})
        return {"workers": rows, "config_path": str(self._app.project.config_path)}

    async def _add_one(self, call: Call, request: _Add, source: str) -> dict[str, Any]:
        try:
            installed = await add_worker(
                self._app.project,
                self._app.images,
                source,
                force=request.force,
                reset_config=request.reset_config,
                progress=call.report,
                check=self._app.check_worker,
                drop_snapshot=self._app.manager.drop_snapshot,
            )
            await self._app.reload()
            supervisor = self._app.manager.get(installed.name)
            if request.force:
                supervisor.restart()
            else:
                supervisor.start()
        except IIIError as error:
            return {"error": _error(error)}
        row = {**installed.as_json(), "ready": False}
        if request.wait:
            try:
                await supervisor.ready(request.timeout)
                row["ready"] = True
            except IIIError as error:
                row["not_ready"] = _error(error)
        return row

    async def remove(self, call: Call) -> dict[str, Any]:
        """Take workers out of config.yaml and iii.lock, end them, and delete their writable layers and snapshots.

        What is out of config.yaml is brought to its end, even if the client leaves.
        """
        rows: list[dict[str, Any]] = []
        for name in _arguments(call, _Names).names:
            try:
                unlocked = await remove_from_project(self._app.project, name)
                await self._app.forget_worker(name)
                rows.append({"name": name, "removed": True, "lock_changed": unlocked})
            except IIIError as error:
                rows.append({"name": name, "removed": False, "error": _error(error)})
        return {"workers": rows}

    async def start(self, call: Call) -> dict[str, Any]:
        """Start a stopped or failed worker; a running one is left as it is."""
        request = _arguments(call, _Start)
        supervisor = self._supervisor(request.name)
        supervisor.start(cold=request.cold)
        return await self._started(supervisor, request)

    async def restart(self, call: Call) -> dict[str, Any]:
        """Stop, then start."""
        request = _arguments(call, _Start)
        supervisor = self._supervisor(request.name)
        supervisor.restart(cold=request.cold)
        return await self._started(supervisor, request)

    async def _started(self, supervisor: Supervisor, request: _Start) -> dict[str, Any]:
        if request.wait:
            await supervisor.ready(request.timeout)
        else:
            await trio.lowlevel.checkpoint()
        return supervisor.as_json()

    async def snapshot(self, call: Call) -> dict[str, Any]:
        """Save a running worker, to start from there, and wait until it is ready again; or delete what was saved."""
        request = _arguments(call, _Snapshot)
        supervisor = self._supervisor(request.name)
        if request.remove:
            return {"name": request.name, "removed": await supervisor.snapshots.drop()}
        facts = await supervisor.snapshot()
        await supervisor.ready(request.timeout)
        return {"name": request.name, **facts}

    async def stop(self, call: Call) -> dict[str, Any]:
        """Stop a worker until it is started again; config.yaml is not changed."""
        supervisor = self._supervisor(_arguments(call, _Start).name)
        was_running = supervisor.phase.alive
        supervisor.request_stop()
        await supervisor.stopped()
        return {"name": supervisor.spec.name, "stopped": was_running}

    async def exec(self, call: Call) -> dict[str, Any]:
        """Run a program in a worker's sandbox; see `iii_core.workers.exec`."""
        request = _arguments(call, ExecRequest)
        agent, plan = self._supervisor(request.name).agent()
        with _told_as_worker(request.name):
            return await exec_in_worker(request, agent, plan, call.stream)

    async def copy(self, call: Call) -> dict[str, Any]:
        """Copy files into or out of a worker's sandbox; see `iii_core.workers.copy`."""
        request = _arguments(call, CopyRequest)
        agent, plan = self._supervisor(request.name).agent()
        with _told_as_worker(request.name):
            return await copy_of_worker(request, agent, plan, call.stream)

    def _row(self, entry: WorkerEntry) -> dict[str, Any]:
        row: dict[str, Any] = {
            "name": entry.name, "type": entry.kind, "version": None, "pid": None, "status": "stopped",
            "isolation": None, "backend": None, "note": None,
        }  # fmt: skip
        supervisor = self._app.manager.workers.get(entry.name)
        if supervisor is not None:
            facts = supervisor.as_json()
            error = facts["error"]
            hints = supervisor.state.image.hints if supervisor.state.image else None
            row |= {key: facts[key] for key in ("pid", "status", "isolation", "backend")}
            locked = self._app.lock.workers.get(entry.name)
            version = hints.version if hints and hints.version else locked.version if locked else None
            row |= {"version": version, "note": error["message"] if error else None}
        elif self._app.is_engine_worker(entry.name):
            row |= {"type": "engine", "status": "running", "isolation": "in-process"}
        else:
            row["note"] = "no installed plugin provides this worker"
        return row

    def _entry(self, name: str) -> WorkerEntry:
        entry = self._app.config.find(name)
        if entry is None:
            raise not_in_config(name, [entry.name for entry in self._app.config.workers])
        return entry

    def _supervisor(self, name: str) -> Supervisor:
        entry = self._entry(name)
        if not entry.managed:
            raise UsageError(
                f"worker {name!r} lives inside the engine and cannot be started, stopped or entered by itself",
                hint="it starts and stops with the engine",
            )
        return self._app.manager.get(name)


def _external_row(worker: WorkerInfo) -> dict[str, Any]:
    return {
        "name": worker.name or worker.id, "type": "external", "version": worker.version, "pid": worker.pid,
        "status": "running", "isolation": None, "backend": None, "note": None,
    }  # fmt: skip


@contextmanager
def _told_as_worker(name: str) -> Generator[None]:
    """The link that breaks is the sandbox's: whoever asked must not take it for the engine's."""
    try:
        yield
    except (LinkError, ExceptionGroup) as error:
        if not isinstance(leading_error(error), LinkError):
            raise
        raise SandboxDied(
            f"the sandbox of worker {name!r} ended, was saved or stopped answering before this was done",
            hint=f"see 'iii worker status {name}': it is started again where it ended",
            details={"name": name, "exit": "unknown"},
        ) from error


def _arguments(call: Call, kind: type[A]) -> A:
    try:
        return msgspec.convert(call.args, kind)
    except msgspec.ValidationError as error:
        raise UsageError(f"malformed arguments: {error}") from error


def _error(error: BaseException) -> dict[str, Any]:
    leader = leading_error(error)
    assert isinstance(leader, IIIError)
    return {"code": leader.code, "message": leader.message, "hint": leader.hint, "details": leader.details}
