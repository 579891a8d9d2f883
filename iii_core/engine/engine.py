"""The engine as an embedding program sees it, and how its parts live and die.

Lifetimes are nested: core ⊃ in-process workers ⊃ front door (listeners). At the end they stop from the inside out: no
new connections and the old ones dropped, then workers are asked to stop and given a moment, then the rest is cancelled.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import msgspec
import trio

from iii_core import __version__
from iii_core.engine.client import LocalClient
from iii_core.engine.config import EngineConfig, ListenerConfig
from iii_core.engine.core import CoreWorker
from iii_core.engine.frontdoor import FrontDoor
from iii_core.engine.hosted import HostedSet
from iii_core.engine.local import LocalWorker, make_record
from iii_core.engine.observe import WorkerChanges, WorkerInfo, snapshot
from iii_core.engine.policy import Authenticate, allow_everything
from iii_core.engine.resolve import find_worker, settings_of, wanted_listeners
from iii_core.errors import ConfigError, PluginMissing
from iii_core.records import InProcessWorker, OpenContext, Record, Transport
from iii_core.transport.port import ListenAddress, Listener

if TYPE_CHECKING:
    from iii_core.engine.inprocess import EngineClient
    from iii_core.transport.port import MessageTransport

R = TypeVar("R", bound=Record)

DEFAULT_TRANSPORT: Final = "websocket"
WORKER_GRACE: Final = 10.0


class Plugins(Protocol):
    """What the engine needs of `iii_core.host.PluginHost`."""

    def collect(self, kind: type[R]) -> dict[str, R]:
        """The records of one kind by name."""
        ...


class Engine:
    """A running engine, from `open_engine`. For the trio thread that opened it; methods may be called concurrently.
    Once the block of `open_engine` is over they raise `EngineError`, also those that wait.

    Attributes:
        router: the routing state, for parts of the core; plugins use `client`.
    """

    def __init__(self, core: CoreWorker, plugins: Plugins | None, context: OpenContext, nurseries: _Nurseries) -> None:
        self._core = core
        self.router = core.router
        self._front_door = FrontDoor(core)
        self._plugins = plugins
        self._context = context
        self._nurseries = nurseries
        self._self_client = self._make_client("iii-engine", internal=True)
        self._workers = HostedSet[str, _WorkerSettings](nurseries.workers, self._run_worker, grace=WORKER_GRACE)
        self._listeners = HostedSet[tuple[str, str, int, int], ListenerConfig](
            nurseries.front, self._run_listener, grace=0
        )
        self._transports = HostedSet[tuple[str, bytes], _TransportSettings](
            nurseries.core, self._run_transport, grace=WORKER_GRACE
        )
        self._transport_lock = trio.Lock()
        self._apply_lock = trio.Lock()

    @property
    def addresses(self) -> tuple[ListenAddress, ...]:
        """Where the listeners of the configuration are bound, in order of transport, host and port asked for."""
        return tuple(address for _, address in sorted(self._listeners.values.items()))

    @property
    def workers(self) -> tuple[WorkerInfo, ...]:
        """The workers now, the engine's internal ones left out, in order of connection."""
        return snapshot(self.router)

    async def wait_for_worker(self, wanted: Callable[[WorkerInfo], bool]) -> WorkerInfo:
        """Wait until a worker is as wanted, and give it.

        ``wanted`` is asked again whenever a worker joins, leaves, describes itself or changes what it registered; not
        when it only becomes busy or idle.
        """
        async for workers in self.worker_changes():
            for worker in workers:
                if wanted(worker):
                    return worker
        raise AssertionError("unreachable")

    def worker_changes(self) -> WorkerChanges:
        """``async for workers in engine.worker_changes()``: the workers now, and after each change. Endless."""
        return WorkerChanges(self._core)

    async def trigger(
        self,
        function_id: str,
        payload: Any = None,
        *,
        metadata: Any = None,
        timeout: float | None = None,
    ) -> Any:
        """Call a function as the engine itself; see `EngineClient.trigger`."""
        self._core.check_running()
        return await self._self_client.trigger(function_id, payload, metadata=metadata, timeout=timeout)

    def fire(self, function_id: str, payload: Any = None, *, metadata: Any = None) -> None:
        """Call a function as the engine itself, without an answer; see `EngineClient.fire`."""
        self._self_client.fire(function_id, payload, metadata=metadata)

    def client(self, name: str, *, description: str | None = None) -> EngineClient:
        """A new in-process worker. It is listed at once and stays until it is closed or the engine ends."""
        return self._make_client(name, description=description)

    def add_telemetry_sink(self, sink: Callable[[str, bytes], None]) -> Callable[[], None]:
        """Have ``sink(worker_id, frame)`` called with every telemetry frame (four-byte kind, then OTLP/JSON).

        ``worker_id`` is "" for frames of a ``/otel`` connection. Gives a function that takes the sink away.
        """
        self._core.telemetry_sinks.append(sink)
        return lambda: self._core.telemetry_sinks.remove(sink)

    def listener(self, settings: ListenerConfig, *, authenticate: Authenticate = allow_everything) -> Listener:
        """How a transport is to serve connections to this engine.

        Args:
            settings: rules for the request, TLS and the time for the handshake; transport and address are not used.
            authenticate: gives each worker and telemetry connection its `Policy`, or raises `AccessDenied`.

        Raises:
            TlsError: the files of ``settings.tls`` cannot be used.
        """
        return self._front_door.listener(settings, authenticate)

    async def serve_stream(
        self, stream: trio.abc.Stream, *, sandbox: str | None = None, transport: str | None = None
    ) -> None:
        """Serve one connection over a byte stream, such as one tunnelled out of a sandbox, until it ends.

        The stream is closed then. The worker's record names ``sandbox``. ``transport`` is that of the first listener by
        default.
        """
        self._core.check_running()
        names = sorted(self._listeners.values)
        name = transport or (names[0][0] if names else DEFAULT_TRANSPORT)
        running = (settings for _, settings in sorted(self._listeners.settings.items()) if settings.transport == name)
        options = next((settings.options for settings in running), dict[str, Any]())
        opened = await self._open_transport(name, options)
        await opened.serve_stream(stream, self.listener(ListenerConfig(transport=name)), sandbox=sandbox)

    async def apply(self, config: EngineConfig) -> None:
        """Change to another configuration.

        Unchanged listeners keep their connections, unchanged in-process workers their state; changed ones are replaced.
        If anything cannot be had, everything stays (or is put back) as it was, and the error is raised.

        Raises:
            ConfigError: a setting is wrong, or ``limits`` differ from those the engine was opened with.
            PluginMissing: no plugin provides a transport or worker.
            AddressInUse: a listener's address is taken.
            TlsError: a listener's certificate or key cannot be used.
        """
        self._core.check_running()
        if config.limits != self.router.limits:
            raise ConfigError("the engine's limits cannot change while it runs", hint="restart the engine")
        async with self._apply_lock:
            before = self._workers.settings
            await self._workers.apply(self._wanted_workers(config))
            try:
                await self._listeners.apply(wanted_listeners(config))
            except BaseException:
                with trio.move_on_after(2 * WORKER_GRACE, shield=True):
                    await self._workers.apply(before)
                raise

    async def stop_workers(self) -> None:
        """Ask every in-process worker of the configuration to stop, and wait for it, a bounded time each."""
        await self._workers.apply({})

    def _make_client(self, name: str, *, description: str | None = None, internal: bool = False) -> LocalClient:
        self._core.check_running()
        record = make_record(name, self.router.workers, __version__, description)
        record.internal = internal
        worker = LocalWorker(self.router, self._nurseries.core, record)
        self.router.attach(worker)
        return LocalClient(worker, self._core.channels)

    def _wanted_workers(self, config: EngineConfig) -> dict[str, _WorkerSettings]:
        records = self._plugins.collect(InProcessWorker) if self._plugins and config.workers else {}
        wanted: dict[str, _WorkerSettings] = {}
        for name, settings in config.workers.items():
            record = find_worker(records, name)
            if record.name in wanted:
                raise ConfigError(f"the in-process worker {record.name!r} is configured twice (it is also {name!r})")
            wanted[record.name] = _WorkerSettings(record, settings_of(record, settings, f"workers.{name}"))
        return wanted

    async def _open_transport(self, name: str, options: Mapping[str, Any]) -> MessageTransport:
        async with self._transport_lock:
            records = self._plugins.collect(Transport) if self._plugins else {}
            record = records.get(name)
            if record is None:
                raise PluginMissing(
                    f"no plugin provides the transport {name!r}",
                    hint="install the default plugins with `pip install 'iii-core[default]'`",
                )
            key = (name, msgspec.json.encode(options, order="sorted"))
            if key not in self._transports.values:
                await self._transports.add(key, _TransportSettings(record, settings_of(record, options, name)))
            opened: MessageTransport = self._transports.values[key]
            return opened

    async def _run_transport(
        self, settings: _TransportSettings, stop: trio.Event, *, task_status: trio.TaskStatus[MessageTransport]
    ) -> None:
        context = self._provider_context("transports", settings.record.name)
        async with settings.record.open(settings.config, context) as opened:
            task_status.started(opened)
            await stop.wait()

    async def _run_worker(
        self, settings: _WorkerSettings, stop: trio.Event, *, task_status: trio.TaskStatus[None]
    ) -> None:
        record = settings.record
        context = self._provider_context("workers", record.name)
        with self.client(record.name, description=record.description or None) as client:
            async with record.open(settings.config, client, context):
                task_status.started()
                await stop.wait()

    async def _run_listener(  # noqa: ASYNC128 - the transport calls it
        self, settings: ListenerConfig, stop: trio.Event, *, task_status: trio.TaskStatus[ListenAddress]
    ) -> None:
        del stop  # cancelling is how a listener ends: it drops connections the way old SDKs need it
        transport = await self._open_transport(settings.transport, settings.options)
        address = ListenAddress(host=settings.host, port=settings.port)
        await transport.listen(address, self.listener(settings), task_status=task_status)

    def _provider_context(self, kind: str, name: str) -> OpenContext:
        context = self._context
        return replace(context, state_dir=context.state_dir / kind / name, runtime_dir=context.runtime_dir / name)


@dataclass(frozen=True, slots=True)
class _WorkerSettings:
    record: InProcessWorker
    config: Any


@dataclass(frozen=True, slots=True)
class _TransportSettings:
    record: Transport
    config: Any


@dataclass(frozen=True, slots=True)
class _Nurseries:
    core: trio.Nursery
    workers: trio.Nursery
    front: trio.Nursery


@contextmanager
def _private_context() -> Generator[OpenContext]:
    with tempfile.TemporaryDirectory(prefix="iii-") as name:
        folder = Path(name)
        yield OpenContext(state_dir=folder / "state", runtime_dir=folder / "run", home=folder / "home", environ={})


@asynccontextmanager
async def open_engine(
    config: EngineConfig | None = None, *, plugins: Plugins | None = None, context: OpenContext | None = None
) -> AsyncGenerator[Engine]:
    """Run an engine for the time of the block; inside, it is usable: workers are open and listeners bound.

    Args:
        config: what to run; nothing but the engine's own functions by default.
        plugins: where transports and in-process workers come from, such as an `iii_core.host.PluginHost`.
        context: folders for providers; by default a private temporary folder that goes with the engine.

    At the end of the block workers are asked to stop and have `WORKER_GRACE` seconds for it. When the block is
    cancelled from outside nobody is asked: the workers' own context managers see the cancellation at once, so what a
    worker must not lose it saves in a ``finally``, shielded for a bounded time.

    Raises:
        ConfigError, PluginMissing, AddressInUse: as `Engine.apply`. An exception of the block comes out as it is.
    """
    config = config or EngineConfig()
    failure: Exception | None = None
    with nullcontext(context) if context else _private_context() as context:
        async with trio.open_nursery() as core:
            core_worker = CoreWorker(config.limits, core, __version__)
            core.start_soon(core_worker.run, name="engine core")
            core.start_soon(core_worker.channels.run, name="channel sweeper")
            try:
                async with trio.open_nursery() as workers:
                    async with trio.open_nursery() as front:
                        engine = Engine(core_worker, plugins, context, _Nurseries(core, workers, front))
                        try:
                            await engine.apply(config)
                            yield engine
                        except (
                            Exception
                        ) as error:  # re-raised below, outside the nurseries that would wrap it in a group
                            failure = error
                        finally:
                            front.cancel_scope.cancel()
                    try:
                        await engine.stop_workers()
                    finally:
                        workers.cancel_scope.cancel()
            finally:
                core_worker.end()
                core.cancel_scope.cancel()
    if failure is not None:
        raise failure
