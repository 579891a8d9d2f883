"""A callee that takes nothing is dropped in time, and one that is merely slow is not: real sockets, a real engine."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest
import trio
import trio.testing
from iii_plugin_websocket.guard import FrameGuard
from iii_plugin_websocket.stream import GuardedStream

from iii_core.engine import Engine, EngineConfig, ListenerConfig, TlsFiles, open_engine
from iii_core.host import PluginHost
from iii_core.protocol.limits import EngineLimits
from iiitools.certificates import Authority, Certificate

from .websocket_wire import TEXT, Wire, frame

STALL = 1.0
RATE = 400_000
"""Bytes per second of a slow reader."""
BIG = 24 * 1024 * 1024
"""More than the buffers of both ends hold (tcp_wmem, tcp_rmem)."""


@dataclass
class Bench:
    engine: Engine
    tls: ssl.SSLContext | None
    streams: AsyncExitStack

    async def worker(self, name: str) -> Wire:
        """A worker that offers ``name`` and reads only when told to; its receive buffer has a fixed size."""
        connection = await connect(self.engine.addresses[0].port)
        stream: trio.abc.Stream = await self.streams.enter_async_context(connection)
        if self.tls is not None:
            stream = trio.SSLStream(stream, self.tls, server_hostname="127.0.0.1", https_compatible=True)
        wire = Wire(stream)
        await wire.upgrade()
        await wire.send(frame(TEXT, json.dumps({"type": "registerfunction", "id": name}).encode()))
        await self.engine.wait_for_worker(lambda worker: name in worker.functions)
        return wire


async def connect(port: int) -> trio.SocketStream:
    """A connection whose receive buffer does not grow."""
    connection = trio.socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    await connection.connect(("127.0.0.1", port))
    return trio.SocketStream(connection)


@asynccontextmanager
async def open_bench(authority: Authority, certificate: Certificate, secure: bool) -> AsyncGenerator[Bench]:
    files = TlsFiles(cert=certificate.cert, key=certificate.key) if secure else None
    config = EngineConfig(listeners=(ListenerConfig(port=0, tls=files),), limits=EngineLimits(stall_timeout=STALL))
    async with AsyncExitStack() as streams, open_engine(config, plugins=PluginHost.create()) as engine:
        yield Bench(engine, ssl.create_default_context(cafile=str(authority.path)) if secure else None, streams)


@pytest.fixture(params=[False, True], ids=["ws", "wss"])
async def bench(
    request: pytest.FixtureRequest, authority: Authority, certificate: Certificate
) -> AsyncGenerator[Bench]:
    async with open_bench(authority, certificate, request.param) as opened:
        yield opened


async def test_a_reader_that_stops_is_dropped_in_time(bench: Bench) -> None:
    await bench.worker("stuck::f")
    start = trio.current_time()
    bench.engine.fire("stuck::f", "x" * BIG)
    async for workers in bench.engine.worker_changes():
        if not workers:
            break
    assert STALL <= trio.current_time() - start < STALL * 30


async def test_a_slow_reader_is_kept(bench: Bench) -> None:
    wire = await bench.worker("slow::f")
    bench.engine.fire("slow::f", "x" * BIG)
    taken = 0
    while taken < BIG // 3:  # fast at first, so that the buffers grow
        taken += len(await wire.stream.receive_some(64 * 1024))
    before, start = taken, trio.current_time()
    while (elapsed := trio.current_time() - start) < STALL * 3:
        while taken - before < elapsed * RATE:
            taken += len(await wire.stream.receive_some(16 * 1024))
        await trio.sleep(0.05)
    assert [worker.functions for worker in bench.engine.workers] == [("slow::f",)]
    while taken < BIG:
        taken += len(await wire.stream.receive_some(4 * 1024 * 1024))
    await wire.send(frame(TEXT, b'{"type":"ping"}'))
    while not (data := await wire.stream.receive_some()).endswith(b'{"type":"pong"}'):
        assert data


async def test_a_batch_of_short_messages_comes_in_order_and_whole(bench: Bench) -> None:
    wire = await bench.worker("many::f")
    for number in range(500):
        bench.engine.fire("many::f", number)
    found = [json.loads((await wire.read_frame())[1]) for _ in range(501)]
    assert [call.get("data") for call in found if call["type"] == "invokefunction"] == list(range(500))


async def test_progress_follows_the_reader_and_not_the_send_buffer() -> None:
    """A full buffer of megabytes would take more only when a third of it is gone: long after the reader went on."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, await connect(listener.socket.getsockname()[1]) as reader:
        stream = await listener.accept()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * 1024 * 1024)
        guarded = GuardedStream(stream, FrameGuard(1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guarded.send_all, bytes(BIG))
            await trio.testing.wait_all_tasks_blocked(0.2)
            for _ in range(3):
                before, left = guarded.progress, 512 * 1024
                while left:
                    left -= len(await reader.receive_some(left))
                with trio.fail_after(20):
                    while guarded.progress == before:  # noqa: ASYNC110 - the system tells nobody
                        await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        await guarded.aclose()
