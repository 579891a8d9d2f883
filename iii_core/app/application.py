"""One project, running: engine, managed workers, control socket, hot reload.

Nesting is the order of shutdown, inside out: control socket and reload (nothing new begins), then the managed workers
(each gets SIGTERM and its grace while it can still reach the engine), then the engine with its listeners, then the
sandbox host. Nothing relies on the order in which a cancelled nursery ends its tasks.
"""

from __future__ import annotations

import fcntl
import logging
import os
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from iii_core import __version__
from iii_core.app.background import finish_in
from iii_core.app.declared import Declared, Providers, load_declared
from iii_core.app.settings import is_engine_worker, unknown_workers
from iii_core.control.server import serve_control
from iii_core.engine import open_engine
from iii_core.errors import ConfigIoError
from iii_core.project.context import provider_context
from iii_core.project.files import hint_for
from iii_core.project.locate import (
    control_socket,
    engine_runs,
    make_state_dir,
    read_record,
    remove_record,
    remove_runtime_dir,
    write_record,
)
from iii_core.sandbox.hostclient import open_sandbox_host
from iii_core.transport.port import ListenAddress
from iii_core.workers.check import check_entry
from iii_core.workers.image_service import open_images
from iii_core.workers.manager import WorkerManager
from iii_core.workers.operations import WorkerOperations
from iii_core.workers.sandbox_service import open_sandboxes
from iii_core.workers.services import WorkerServices
from iii_core.workers.validity import WELL_KNOWN_PORT

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Sequence

    from iii_core.engine import Engine
    from iii_core.engine.observe import WorkerInfo
    from iii_core.host import PluginHost
    from iii_core.project.config import ProjectConfig, WorkerEntry
    from iii_core.project.locate import Project
    from iii_core.project.lock import Lock
    from iii_core.workers.image_service import ImageService
    from iii_core.workers.sandbox_service import SandboxService

_log = logging.getLogger(__name__)

LOCK_FILE: Final = "engine.lock"


class Application:
    """A running project. Made by `open_application`."""

    def __init__(
        self,
        project: Project,
        providers: Providers,
        engine: Engine,
        manager: WorkerManager,
        images: ImageService,
        sandboxes: SandboxService,
        declared: Declared,
        background: trio.Nursery,
    ) -> None:
        self.project = project
        self.manager = manager
        self.images = images
        self._providers = providers
        self._engine = engine
        self._sandboxes = sandboxes
        self._declared = self._at_start = declared
        self._reloading = trio.Lock()
        self._background = background

    @property
    def config(self) -> ProjectConfig:
        """The configuration in force."""
        return self._declared.config

    @property
    def lock(self) -> Lock:
        """The pins in force."""
        return self._declared.lock

    @property
    def engine(self) -> Engine:
        """The engine itself."""
        return self._engine

    async def reload(self) -> None:
        """Take up config.yaml and iii.lock as they are now; unchanged listeners and workers go on undisturbed.

        Goes on if its caller is cancelled, until the application ends.

        Raises `IIIError`: the file is not valid, or a listener cannot be opened. What was in force stays in force.
        """
        await finish_in(self._background, self._reload)

    async def forget_worker(self, name: str) -> None:
        """Take up that a worker is out of config.yaml: end it, and delete what it has written; as `reload`."""
        self.manager.forget(name)
        await finish_in(self._background, self._forget)

    async def _forget(self) -> None:
        await self._reload()
        await self.manager.delete_removed()

    async def _reload(self) -> None:
        async with self._reloading:
            declared = await trio.to_thread.run_sync(load_declared, self.project, self._providers)
            await self._engine.apply(declared.engine)
            self.leave_word()
            self._declared = declared
            start = self._at_start
            if (declared.backends, declared.registries) != (start.backends, start.registries):
                _log.warning("settings of sandbox backends and registries are taken up when the engine starts again")
            await self.start_workers()

    def leave_word(self) -> None:
        """Write down where this engine is, for commands."""
        at = EngineTunnel(self._engine).trusted
        write_record(self.project, control=control_socket(self.project), port=at.port, secure=at.secure)

    async def start_workers(self) -> None:
        """Make the managed workers those that the configuration in force declares."""
        self._warn_unknown()
        await self.manager.apply(self._declared.workers)

    async def check_worker(self, entry: WorkerEntry) -> None:
        """See `iii_core.workers.check.check_entry`; with the config.yaml that is in force."""
        port = EngineTunnel(self._engine).port
        await check_entry(entry, self.config, self.project, self._sandboxes, engine_port=port)

    def engine_status(self) -> dict[str, Any]:
        """``engine.status`` of the control socket."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "project": str(self.project.root),
            "listeners": [{"host": at.host, "port": at.port, "secure": at.secure} for at in self._engine.addresses],
            "connected_workers": len(self._engine.workers),
        }

    def external_workers(self) -> Iterable[WorkerInfo]:
        """The connected workers that iii does not run; a connection that has not described itself yet is none."""
        return [
            worker
            for worker in self._engine.workers
            if not worker.in_process and worker.sandbox is None and (worker.name or worker.functions)
        ]

    def is_engine_worker(self, name: str) -> bool:
        """Whether the engine itself answers to this name."""
        return is_engine_worker(name, self._providers.in_process)

    def _warn_unknown(self) -> None:
        for name in unknown_workers(self.config, self._providers.in_process):
            _log.warning("no installed plugin provides worker %r of config.yaml; it is ignored", name)


class EngineTunnel:
    """The engine as sandboxes see it (`iii_core.workers.services.EngineSide`)."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def port(self) -> int:
        """The port of `trusted`."""
        return self.trusted.port

    @property
    def trusted(self) -> ListenAddress:
        """The listener that commands and sandboxes are told of: the first without TLS, which theirs need not be."""
        addresses = sorted(self._engine.addresses, key=lambda address: address.secure)
        return addresses[0] if addresses else ListenAddress(host="127.0.0.1", port=WELL_KNOWN_PORT)

    @property
    def tunnel_ports(self) -> Sequence[int]:
        """The engine's own port and the well-known one, which images may have baked in."""
        return tuple(dict.fromkeys((self.port, WELL_KNOWN_PORT)))

    async def serve_tunnel(self, stream: trio.abc.Stream, sandbox_id: str) -> None:
        """Serve one connection out of a sandbox."""
        await self._engine.serve_stream(stream, sandbox=sandbox_id)

    async def watch_sandbox(self, sandbox_id: str, report: Callable[[bool], None]) -> None:
        """Report whether a worker of that sandbox is connected, now and at each change."""
        connected: bool | None = None
        async for workers in self._engine.worker_changes():
            now = any(worker.sandbox == sandbox_id for worker in workers)
            if now != connected:
                connected = now
                report(now)


@asynccontextmanager
async def open_application(project: Project, plugins: PluginHost) -> AsyncGenerator[Application]:
    """Run a project for as long as the block lasts.

    Raises:
        ConfigError: config.yaml is not valid.
        EngineAlreadyRunning: another engine runs this project.
        AddressInUse: a listener's address is taken.
        PluginCollision: two plugins claim one name.
    """
    providers = Providers.of(plugins)
    declared = await trio.to_thread.run_sync(load_declared, project, providers)
    state_dir = make_state_dir(project)
    with _engine_lock(project):
        context = partial(provider_context, project)
        async with (
            open_sandboxes(
                plugins, lambda: open_sandbox_host(context("sandbox-host"), config=declared.backends)
            ) as sandboxes,
            open_images(plugins, context, declared.registries) as images,
            open_engine(declared.engine, plugins=plugins, context=context("engine")) as engine,
            trio.open_nursery() as supervisors,
        ):
            tunnel = EngineTunnel(engine)
            services = WorkerServices(images=images, sandboxes=sandboxes, engine=tunnel)
            manager = WorkerManager(supervisors, services, project=project.root, state_dir=state_dir)
            await manager.find_removed()
            supervisors.start_soon(manager.sweep)
            try:
                async with trio.open_nursery() as front:
                    application = Application(project, providers, engine, manager, images, sandboxes, declared, front)
                    await front.start(serve_control, control_socket(project), WorkerOperations(application).table())
                    application.leave_word()
                    await application.start_workers()
                    yield application
                    front.cancel_scope.cancel()
            finally:
                remove_record(project)
                with trio.CancelScope(shield=True):  # bounded by the manager itself
                    await manager.stop_all()
            supervisors.cancel_scope.cancel()
        remove_runtime_dir(project)


@contextmanager
def _engine_lock(project: Project) -> Generator[None]:
    """One engine per project: an flock that dies with its holder."""
    path = make_state_dir(project) / LOCK_FILE
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ConfigIoError(f"cannot open {path}: {error.strerror}", hint=hint_for(error)) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise engine_runs(project, read_record(project)) from None
        yield
    finally:
        os.close(descriptor)
