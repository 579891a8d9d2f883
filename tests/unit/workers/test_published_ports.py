"""Published ports: bytes both ways, half closes, refusals, and addresses that cannot be had."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import cast

import pytest
import trio

from iii_core.errors import AddressInUse, ConfigError
from iii_core.project.sandbox_settings import PublishedPort
from iii_core.sandbox.agent import Agent
from iii_core.workers import ports as ports_module
from iii_core.workers.ports import open_ports
from iiitools.ports import reserved_port

Serve = Callable[[trio.SocketStream], Awaitable[None]]


class Inside:
    """A sandbox's network as far as `Ports` needs it: ports that it dials are listeners of this machine."""

    def __init__(self, listening: dict[int, int]) -> None:
        self._listening = listening
        self.gone = trio.Event()

    async def dial(self, port: int) -> trio.SocketStream:
        if port not in self._listening:
            raise ConnectionRefusedError(f"port {port} in the sandbox: nobody is there")
        return await trio.open_tcp_stream("127.0.0.1", self._listening[port])

    async def wait_closed(self) -> None:
        await self.gone.wait()


@asynccontextmanager
async def published(serve: Serve, notes: list[str]) -> AsyncGenerator[tuple[int, Inside]]:
    """A host port that leads to ``serve``; another one beside it leads nowhere."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    inside = Inside({80: listener.socket.getsockname()[1]})
    with reserved_port() as host:
        async with open_ports([PublishedPort(host=host, guest=80)]) as ports, trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, serve, [listener])
            nursery.start_soon(ports.serve, cast("Agent", inside), notes.append)  # noqa: ASYNC113  # it listens already
            yield host, inside
            nursery.cancel_scope.cancel()


async def echo(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)
    await stream.send_eof()


async def test_bytes_go_both_ways_and_ends_are_passed_on() -> None:
    with trio.fail_after(30):
        async with (
            published(echo, []) as (port, _),
            await trio.open_tcp_stream("127.0.0.1", port) as one,
            await trio.open_tcp_stream("127.0.0.1", port) as other,
        ):
            await one.send_all(b"a" * 100_000)
            await other.send_all(b"b")
            assert await other.receive_some() == b"b"
            await one.send_eof()
            got = b"".join([piece async for piece in one])
            assert got == b"a" * 100_000
            await other.send_all(b"c")
            assert await other.receive_some() == b"c"


async def test_one_that_leaves_is_seen_inside() -> None:
    left = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        try:
            while True:
                await stream.send_all(b"x" * 65536)
        except trio.BrokenResourceError:
            left.set()

    with trio.fail_after(30):
        async with published(serve, []) as (port, _):
            async with await trio.open_tcp_stream("127.0.0.1", port) as client:
                await client.receive_some()
            await left.wait()


async def test_nobody_inside_is_the_end_of_the_connection_and_noted_once() -> None:
    """Whoever may connect could fill the worker's log otherwise."""
    notes: list[str] = []
    with reserved_port() as port, trio.fail_after(30):
        async with open_ports([PublishedPort(host=port, guest=81)]) as ports, trio.open_nursery() as nursery:
            nursery.start_soon(ports.serve, cast("Agent", Inside({})), notes.append)  # noqa: ASYNC113  # it listens already
            for _ in range(2):
                async with await trio.open_tcp_stream("127.0.0.1", port) as client:
                    assert await client.receive_some() == b""
            nursery.cancel_scope.cancel()
    assert notes == [f"port {port}: nobody was reached at port 81 inside (port 81 in the sandbox: nobody is there)"]


async def test_connections_are_bounded_and_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports_module, "MAX_CONNECTIONS", 1)
    with trio.fail_after(30):
        async with (
            published(echo, []) as (port, _),
            await trio.open_tcp_stream("127.0.0.1", port) as first,
            await trio.open_tcp_stream("127.0.0.1", port) as other,
        ):
            await first.send_all(b"1")
            assert await first.receive_some() == b"1"
            await other.send_all(b"2")
            with trio.move_on_after(0.2) as waited:
                await other.receive_some()
            assert waited.cancelled_caught
            await first.aclose()
            assert await other.receive_some() == b"2"


async def test_they_end_with_the_link() -> None:
    with trio.fail_after(30):
        async with published(echo, []) as (port, inside), await trio.open_tcp_stream("127.0.0.1", port) as client:
            await client.send_all(b"1")
            assert await client.receive_some() == b"1"
            inside.gone.set()
            with suppress(trio.BrokenResourceError):
                assert await client.receive_some() == b""


async def test_addresses_that_cannot_be_had() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, reserved_port() as other:
        port = taken.getsockname()[1]
        with pytest.raises(AddressInUse, match=f"cannot publish port 80 at 127.0.0.1:{port}: the address is taken"):
            async with open_ports([PublishedPort(host=other, guest=80), PublishedPort(host=port, guest=80)]):
                pass
    with pytest.raises(ConfigError, match=r"cannot publish port 80 at 192\.0\.2\.1:80"):
        async with open_ports([PublishedPort(host=80, guest=80, address="192.0.2.1")]):
            pass
    async with open_ports([PublishedPort(host=port, guest=80)]):  # free again
        pass
