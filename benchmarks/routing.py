"""Calls routed per second: through real WebSockets, and in memory.

Over WebSockets a caller and a callee, each a process with a plain socket that keeps 64 calls on their way, meet in the
engine. The reference is the least that anything on trio-websocket could do: a relay that hands whole messages from one
connection to the other. In memory the engine's router works between two workers without a connection; the reference
decodes and encodes the same four messages with msgspec and does nothing else.
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket

from iii_core.engine import EngineConfig, ListenerConfig, open_engine
from iii_core.engine.endpoint import Endpoint, WorkerRecord
from iii_core.engine.invocations import Invocation
from iii_core.engine.router import Router, Topology
from iii_core.host import PluginHost
from iii_core.protocol import messages as m
from iii_core.protocol.codec import decode, encode
from iii_core.protocol.limits import EngineLimits
from iiitools.bench import Row, median_times, pinned

ROUNDS = 5
WINDOW = 64
CALLS = 4000
WARMUP = 500
IN_MEMORY = 5000
PAYLOAD = {"a": 1, "text": "x" * 100}


def measure() -> list[Row]:
    """Both comparisons."""
    return [over_websockets(), in_memory()]


def over_websockets() -> Row:
    """Calls per second with the server on one CPU and its two clients on the other."""
    with pinned(0) as conditions:
        rates: dict[str, list[float]] = {"engine": [], "relay": []}
        for _ in range(ROUNDS):
            rates["engine"].append(trio.run(partial(rate, open_routing)))
            rates["relay"].append(trio.run(partial(rate, open_relay)))
    return Row(
        name="routed calls over WebSocket",
        unit="calls/s",
        ours=statistics.median(rates["engine"]),
        reference=statistics.median(rates["relay"]),
        reference_name=f"bare relay on trio-websocket {version('trio-websocket')}",
        aim=0.5,
        better="higher",
        conditions=f"server {conditions}, clients on CPU 1, {WINDOW} calls on their way, payload 120 bytes",
    )


async def rate(open_server: Callable[[], Any]) -> float:
    """Calls per second that two client processes get through a server of this process."""
    async with open_server() as (port, ready):
        callee = await trio.lowlevel.open_process(client("callee", port), stdout=subprocess.PIPE)
        await ready()
        caller: subprocess.CompletedProcess[bytes] = await trio.run_process(
            client("caller", port), capture_stdout=True, check=True
        )
        callee.terminate()
        await callee.wait()
        assert callee.stdout is not None
        await callee.stdout.aclose()
        return float(caller.stdout)


def client(role: str, port: int) -> list[str]:
    """The command of a client process."""
    return [sys.executable, __file__, role, str(port)]


@asynccontextmanager
async def open_routing() -> AsyncGenerator[tuple[int, Callable[[], Any]]]:
    """The engine with a listener."""
    config = EngineConfig(listeners=(ListenerConfig(port=0),))
    async with open_engine(config, plugins=PluginHost.create()) as engine:

        async def ready() -> None:
            await engine.wait_for_worker(lambda worker: "bench::f" in worker.functions)

        yield engine.addresses[0].port, ready


@asynccontextmanager
async def open_relay() -> AsyncGenerator[tuple[int, Callable[[], Any]]]:
    """A server that joins its first two connections."""
    waiting: list[WebSocketConnection] = []
    arrived = trio.Event()

    async def forward(source: WebSocketConnection, target: WebSocketConnection) -> None:
        while True:
            await target.send_message(await source.get_message())

    async def serve(request: WebSocketRequest) -> None:
        connection = await request.accept()
        await connection.send_message('{"type":"workerregistered"}')
        waiting.append(connection)
        if len(waiting) == 1:
            await connection.get_message()  # its registration
            arrived.set()
            await trio.sleep_forever()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(forward, waiting[0], waiting[1])
                await forward(waiting[1], waiting[0])
        except* ConnectionClosed:
            pass

    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve_websocket, serve, "127.0.0.1", 0, ssl_context=None))
        yield server.port, arrived.wait
        nursery.cancel_scope.cancel()


class Wire:
    """A WebSocket client on a plain socket: frames of text, masked with zeros, which change nothing."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(
            b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self._buffer = b""
        while b"\r\n\r\n" not in self._buffer:
            self._fill()
        self._buffer = self._buffer.partition(b"\r\n\r\n")[2]
        assert b"workerregistered" in self.receive()

    def send(self, *texts: bytes) -> None:
        self._socket.sendall(b"".join(frame(text) for text in texts))

    def receive(self) -> bytes:
        while (found := self._take()) is None:
            self._fill()
        return found

    def receive_all(self) -> list[bytes]:
        """The next, and what is here already."""
        found = [self.receive()]
        while (more := self._take()) is not None:
            found.append(more)
        return found

    def _take(self) -> bytes | None:
        buffer = self._buffer
        if len(buffer) < 4:
            return None
        size, start = buffer[1], 2
        if size == 126:
            size, start = int.from_bytes(buffer[2:4], "big"), 4
        if len(buffer) < start + size:
            return None
        self._buffer = buffer[start + size :]
        return buffer[start : start + size]

    def _fill(self) -> None:
        data = self._socket.recv(1 << 16)
        if not data:
            raise EOFError
        self._buffer += data


def frame(text: bytes) -> bytes:
    """A whole frame; every text here has fewer than 65536 bytes."""
    size = len(text)
    head = bytes([0x81, 0x80 | size]) if size < 126 else b"\x81\xfe" + size.to_bytes(2, "big")
    return head + bytes(4) + text


def call(number: int) -> bytes:
    """A call's frame; its id has the length of a UUID."""
    fields = {"type": "invokefunction", "invocation_id": f"{number:036}", "function_id": "bench::f", "data": PAYLOAD}
    return json.dumps(fields, separators=(",", ":")).encode()


def result(invocation_id: bytes) -> bytes:
    """A result's frame."""
    head = b'{"type":"invocationresult","invocation_id":"%s","function_id":"bench::f",' % invocation_id
    return head + b'"result":{"ok":true}}'


def callee(port: int) -> None:
    """Answer calls until the connection ends."""
    wire = Wire(port)
    wire.send(b'{"type":"registerfunction","id":"bench::f"}')
    mark = b'"invocation_id":"'
    try:
        while True:
            calls = wire.receive_all()
            starts = [text.index(mark) + len(mark) for text in calls]
            wire.send(*(result(text[start : start + 36]) for text, start in zip(calls, starts, strict=True)))
    except (EOFError, ConnectionError):
        return


def caller(port: int) -> None:
    """Make calls, always ``WINDOW`` at a time, and print how many came back per second."""
    wire = Wire(port)
    calls = [call(number) for number in range(WARMUP + CALLS)]
    wire.send(*calls[:WINDOW])
    sent, done, start = WINDOW, 0, 0.0
    while done < len(calls):
        arrived = len(wire.receive_all())
        if done < WARMUP <= done + arrived:
            start = time.perf_counter()
        done += arrived
        if sent < len(calls):
            wire.send(*calls[sent : sent + arrived])
            sent += arrived
    print(CALLS / (time.perf_counter() - start))


class Memory(Endpoint):
    """A worker whose frames go nowhere."""

    def __init__(self, name: str, limits: EngineLimits) -> None:
        super().__init__(WorkerRecord(id=name, connected_at_ms=0), limits)
        self.received = b""

    def send(self, message: m.ToWorker, payer: Endpoint | None) -> None:
        self.received = encode(message)

    def deliver(self, message: m.InvokeFunction, invocation: Invocation) -> str | None:
        self.received = encode(message)
        return None

    def drop(self, reason: str) -> None:
        raise AssertionError(reason)


def in_memory() -> Row:
    """Calls per second of the router alone."""
    router = Router(EngineLimits(), Topology())
    asking, answering = Memory("caller", router.limits), Memory("callee", router.limits)
    for worker in (asking, answering):
        router.attach(worker)
    router.handle(answering, m.RegisterFunction(id="bench::f"))
    frames = [call(number) for number in range(IN_MEMORY)]
    mark = b'"invocation_id":"'

    def ours() -> None:
        for text in frames:
            router.handle(asking, message_of(text))
            start = answering.received.index(mark) + len(mark)
            router.handle(answering, message_of(result(answering.received[start : start + 36])))

    def reference() -> None:
        for text in frames:
            there = encode_any(message_of(text))
            start = there.index(mark) + len(mark)
            encode_any(message_of(result(there[start : start + 36])))

    with pinned(0) as conditions:
        times = median_times(ours, reference, rounds=7)
    assert not asking.calls
    assert b'"ok":true' in asking.received
    return Row(
        name="routed calls in memory",
        unit="calls/s",
        ours=IN_MEMORY / times[0],
        reference=IN_MEMORY / times[1],
        reference_name=f"msgspec {version('msgspec')}: decode and encode call and result",
        aim=0.3,
        better="higher",
        conditions=f"{conditions}, payload 120 bytes",
    )


def message_of(text: bytes) -> m.FromWorker:
    """A frame's message."""
    message = decode(text, text=True)
    assert message is not None
    return message


def encode_any(message: Any) -> bytes:
    """A message's frame."""
    return encode(message)


if __name__ == "__main__":
    with pinned(1):
        {"caller": caller, "callee": callee}[sys.argv[1]](int(sys.argv[2]))
