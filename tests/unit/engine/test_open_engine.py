"""Embedding: listeners and in-process workers live and die with the engine, and change while it runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from iii_core.engine import Engine, EngineClient, EngineConfig, ListenerConfig, open_engine
from iii_core.errors import (
    AddressInUse,
    ConfigError,
    EngineError,
    EngineNotRunning,
    PluginCollision,
    PluginMissing,
)
from iii_core.protocol.limits import EngineLimits
from iii_core.records import InProcessWorker, OpenContext, Transport
from iii_core.testing.memory_transport import MemoryNetwork, MemoryPeer, MemoryPlugins, MemoryTransport
from iii_core.testing.wire import WireWorker
from iii_core.transport.port import ConnectionRequest, Listener, MessageTransport

LISTENER = ListenerConfig(port=0, transport="memory")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Everything here is in memory, so time may jump: what takes how long says nothing of the machine."""
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0.005)}


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    prefix: str = "sample"
    fail: bool = False


def sample(log: list[str], name: str = "iii-sample") -> InProcessWorker:
    @asynccontextmanager
    async def open_sample(config: Settings, client: EngineClient, context: OpenContext) -> AsyncIterator[None]:
        await trio.lowlevel.checkpoint()
        if config.fail:
            raise ConfigError("this worker fails")
        log.append(f"open {config.prefix}")

        async def where(call: Any) -> str:
            return str(context.state_dir)

        async def crash(call: Any) -> None:
            nursery.start_soon(_crash)

        async with trio.open_nursery() as nursery:
            client.register_function(f"{config.prefix}::where", where)
            client.register_function(f"{config.prefix}::crash", crash)
            try:
                yield
            finally:
                log.append(f"close {config.prefix}")
            nursery.cancel_scope.cancel()

    return InProcessWorker(name=name, aliases=("sample",), config=Settings, open=open_sample)


async def _crash() -> None:
    raise ValueError("background task failed")


async def test_a_worker_runs_if_it_is_named_by_name_or_alias(open_bench: Any) -> None:
    log: list[str] = []
    config = EngineConfig(workers={"sample": {"prefix": "s"}})
    async with open_bench(sample(log), config=config) as bench:
        where = Path(await bench.engine.trigger("s::where"))
        assert where.parts[-2:] == ("workers", "iii-sample")
        assert [worker.name for worker in bench.engine.workers] == ["iii-sample"]
        assert log == ["open s"]
    assert log == ["open s", "close s"]


async def test_an_alias_of_two_workers(open_bench: Any) -> None:
    records = sample([]), sample([], "iii-other")
    with pytest.raises(PluginCollision, match="'iii-sample' and 'iii-other'"):
        async with open_bench(*records, config=EngineConfig(workers={"sample": {}})):
            raise AssertionError("must not open")
    async with open_bench(*records, config=EngineConfig(workers={"iii-other": {}})) as bench:
        assert [worker.name for worker in bench.engine.workers] == ["iii-other"]


@pytest.mark.parametrize(
    ("workers", "error", "text"),
    [
        ({"nope": {}}, PluginMissing, "'nope'"),
        ({"sample": {"unknown": 1}}, ConfigError, "unknown"),
        ({"sample": {"prefix": 1}}, ConfigError, "prefix"),
        ({"sample": {}, "iii-sample": {}}, ConfigError, "twice"),
        ({"sample": {"fail": True}}, ConfigError, "this worker fails"),
    ],
)
async def test_workers_that_cannot_open(open_bench: Any, workers: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        async with open_bench(sample([]), config=EngineConfig(workers=workers)):
            raise AssertionError("must not open")


async def test_a_worker_that_fails_later_ends_alone(open_bench: Any, caplog: pytest.LogCaptureFixture) -> None:
    config = EngineConfig(listeners=(LISTENER,), workers={"iii-sample": {}})
    async with open_bench(sample([]), config=config) as bench:
        worker = await bench.worker()
        await worker.send("invokefunction", function_id="sample::crash", action={"type": "void"})
        await worker.settle()
        await trio.testing.wait_all_tasks_blocked()
        assert [found.id for found in bench.engine.workers] == [worker.worker_id]
        assert "iii-sample failed and is gone" in caplog.text
        await bench.engine.apply(config)
        assert (await worker.call("sample::where")).endswith("iii-sample")


async def test_no_transport() -> None:
    with pytest.raises(PluginMissing, match="'websocket'"):
        async with open_engine(EngineConfig(listeners=(ListenerConfig(port=0),))):
            raise AssertionError("must not open")


@pytest.mark.parametrize("fields", [{"port": -1}, {"port": 65536}, {"handshake_timeout": 0.0}])
def test_wrong_listener_settings(fields: Any) -> None:
    with pytest.raises(ConfigError):
        ListenerConfig(**fields)


async def test_two_listeners_for_one_address(open_bench: Any) -> None:
    listener = replace(LISTENER, port=50_001)
    with pytest.raises(ConfigError, match="two listeners claim"):
        async with open_bench(config=EngineConfig(listeners=(listener, listener))):
            raise AssertionError("must not open")


async def test_addresses_and_admission(open_bench: Any) -> None:
    second = replace(LISTENER, allowed_origins=("https://console.example",), allowed_hosts=("iii.example",))
    async with open_bench(config=EngineConfig(listeners=(LISTENER, second))) as bench:
        strict, open_minded = [f"memory://127.0.0.1:{address.port}/" for address in bench.engine.addresses]
        assert strict != open_minded
        headers = {"origin": "https://console.example", "host": "iii.example"}
        with pytest.raises(EngineError, match="403"):
            await bench.transport.connect(strict, headers=headers)
        await WireWorker.connect(bench.transport, open_minded, **headers)
        with pytest.raises(EngineError, match="404"):
            await bench.transport.connect(strict + "nothing")


async def test_the_end_drops_connections_without_a_close_frame(open_bench: Any) -> None:
    async with open_bench() as bench:
        worker = await bench.worker()
        telemetry = await bench.transport.connect(bench.url + "otel")
        peers = [worker.peer, telemetry]
        transport, url = bench.transport, bench.url
        for peer in peers:
            assert not peer.aborted
        await bench.engine.apply(EngineConfig())
        for peer in peers:
            with pytest.raises(trio.BrokenResourceError):
                await peer.receive()
            assert peer.aborted
            assert peer.close_code is None
        assert bench.engine.workers == ()
        with pytest.raises(EngineNotRunning):
            await transport.connect(url)


async def test_an_unchanged_listener_keeps_its_connections(open_bench: Any) -> None:
    async with open_bench() as bench:
        worker = await bench.worker()
        (address,) = bench.engine.addresses
        more = EngineConfig(listeners=(LISTENER, replace(LISTENER, port=60_000)))
        await bench.engine.apply(more)
        assert address in bench.engine.addresses
        await WireWorker.connect(bench.transport, "memory://127.0.0.1:60000/")
        await bench.engine.apply(EngineConfig(listeners=(LISTENER,)))
        assert bench.engine.addresses == (address,)
        await worker.settle()
        assert [found.id for found in bench.engine.workers] == [worker.worker_id]


async def test_a_changed_listener_is_opened_anew(open_bench: Any) -> None:
    listener = replace(LISTENER, port=60_000)
    async with open_bench(config=EngineConfig(listeners=(listener,))) as bench:
        worker = await bench.worker()
        await bench.engine.apply(EngineConfig(listeners=(replace(listener, allowed_hosts=("iii.example",)),)))
        with pytest.raises(trio.BrokenResourceError):
            await worker.peer.receive()
        await WireWorker.connect(bench.transport, bench.url, host="iii.example")


async def test_a_change_that_fails_leaves_everything_as_it_was(open_bench: Any) -> None:
    log: list[str] = []
    good = EngineConfig(listeners=(LISTENER,), workers={"iii-sample": {"prefix": "old"}})
    async with open_bench(sample(log), config=good) as bench:
        worker = await bench.worker()
        taken = bench.engine.addresses[0].port
        bad_configs: list[tuple[EngineConfig, type[Exception]]] = [
            (replace(good, workers={"nope": {}}), PluginMissing),
            (replace(good, workers={"iii-sample": {"fail": True}}), ConfigError),
            (replace(good, listeners=(LISTENER, replace(LISTENER, port=taken))), AddressInUse),
            (
                EngineConfig(listeners=(replace(LISTENER, port=taken),), workers={"iii-sample": {"prefix": "new"}}),
                AddressInUse,
            ),
            (replace(good, listeners=(LISTENER, replace(LISTENER, transport="nope"))), PluginMissing),
            (replace(good, limits=EngineLimits(functions=1)), ConfigError),
        ]
        for config, error in bad_configs:
            with pytest.raises(error):
                await bench.engine.apply(config)
            assert len(bench.engine.addresses) == 1
            await worker.settle()
            assert (await worker.call("old::where")).endswith("iii-sample")
            assert (await worker.call_error("new::where"))["code"] == "function_not_found"
        await bench.engine.apply(replace(good, workers={"iii-sample": {"prefix": "new"}}))
        assert (await worker.call("new::where")).endswith("iii-sample")
        await worker.settle()


async def test_an_apply_that_is_cancelled_leaves_everything_as_it_was(open_bench: Any) -> None:
    @asynccontextmanager
    async def open_stuck(config: Any, client: EngineClient, context: OpenContext) -> AsyncIterator[None]:
        await trio.Event().wait()
        yield

    async with open_bench(sample([]), InProcessWorker(name="stuck", open=open_stuck)) as bench:
        worker = await bench.worker()
        with trio.move_on_after(0.05) as scope:
            await bench.engine.apply(EngineConfig(listeners=(LISTENER,), workers={"stuck": {}}))
        assert scope.cancelled_caught
        await worker.settle()
        assert [found.id for found in bench.engine.workers] == [worker.worker_id]
        await bench.engine.apply(EngineConfig(listeners=(LISTENER,), workers={"iii-sample": {}}))
        assert (await worker.call("sample::where")).endswith("iii-sample")


async def test_waiting_for_workers(bench: Any) -> None:
    engine: Engine = bench.engine
    async with trio.open_nursery() as nursery:
        found: list[str] = []

        async def wait(name: str) -> None:
            worker = await engine.wait_for_worker(lambda worker: worker.name == name and "a::f" in worker.functions)
            found.append(worker.id)

        nursery.start_soon(wait, "w")
        nursery.start_soon(wait, "never")
        worker = await bench.worker()
        await worker.describe(name="w")
        await worker.settle()
        assert not found
        await worker.send("registerfunction", id="a::f")
        await worker.settle()
        await trio.testing.wait_all_tasks_blocked()
        assert found == [worker.worker_id]
        with trio.fail_after(1):
            await wait("w")
        nursery.cancel_scope.cancel()


async def test_changes_are_coalesced_and_none_is_missed(bench: Any) -> None:
    changes = bench.engine.worker_changes()
    assert await anext(changes) == ()
    worker = await bench.worker()
    for number in range(5):
        await worker.send("registerfunction", id=f"a::{number}")
    await worker.settle()
    with trio.fail_after(1):
        (seen,) = await anext(changes)
    assert len(seen.functions) == 5
    with trio.move_on_after(0.05) as scope:
        await anext(changes)
    assert scope.cancelled_caught
    await worker.vanish()
    assert await anext(changes) == ()


class Tunnel(MemoryTransport):
    """Hands a connection over where a real transport would speak over the stream."""

    def __init__(self, network: MemoryNetwork) -> None:
        super().__init__(network)
        self.clients: list[Any] = []

    async def serve_stream(
        self, stream: trio.abc.Stream, listener: Listener, *, remote: str | None = None, sandbox: str | None = None
    ) -> None:
        headers = (("host", "127.0.0.1:49134"),)
        request = ConnectionRequest(path="/", headers=headers, remote=remote, sandbox=sandbox)
        assert listener.admit(request) is None
        client, server = MemoryPeer.pair(request, listener.limits, listener.limits, 65536)
        self.clients.append(client)
        await listener.serve(server)
        await stream.aclose()


async def test_a_stream_out_of_a_sandbox() -> None:
    network = MemoryNetwork()
    tunnel = Tunnel(network)

    @asynccontextmanager
    async def open_tunnel(config: Any, context: OpenContext) -> AsyncIterator[MessageTransport]:
        yield tunnel

    record = Transport(name="websocket", schemes=("ws",), open=open_tunnel)

    class Plugins(MemoryPlugins):
        def collect(self, kind: Any) -> Any:
            return {"websocket": record} if kind is Transport else {}

    async with open_engine(plugins=Plugins(network)) as engine, trio.open_nursery() as nursery:
        near, far = trio.testing.memory_stream_pair()

        async def serve() -> None:
            await engine.serve_stream(far, sandbox="box-1")
            ended.set()

        ended = trio.Event()
        nursery.start_soon(serve)
        with trio.fail_after(5):
            found = await engine.wait_for_worker(lambda worker: worker.sandbox == "box-1")
        worker = WireWorker(tunnel.clients[0])
        await worker.expect("workerregistered")
        assert (found.sandbox, found.ip_address) == ("box-1", None)
        (row,) = (await worker.call("engine::workers::list", {}))["workers"]
        assert row["sandbox"] == "box-1"
        await worker.peer.close()
        await ended.wait()
        with pytest.raises((trio.BrokenResourceError, trio.EndOfChannel, trio.ClosedResourceError)):
            await near.send_all(b"x")


async def test_an_engine_that_is_cancelled_asks_nobody_and_lets_workers_save(open_bench: Any) -> None:
    log: list[str] = []

    @asynccontextmanager
    async def open_saver(config: Any, client: EngineClient, context: OpenContext) -> AsyncIterator[None]:
        try:
            yield
        finally:
            with trio.move_on_after(1, shield=True):
                await trio.lowlevel.checkpoint()
                log.append("saved")

    config = EngineConfig(listeners=(LISTENER,), workers={"saver": {}})
    with trio.CancelScope() as scope:
        async with open_bench(InProcessWorker(name="saver", open=open_saver), config=config) as bench:
            worker = await bench.worker()
            start = trio.current_time()
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert log == ["saved"]
    assert trio.current_time() - start < 1
    assert worker.peer.aborted
    assert worker.peer.close_code is None
