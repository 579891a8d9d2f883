"""What the transport conformance kit stands on: a listening transport whose peers a check can hold."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from ssl import SSLContext
from typing import TypeVar

import trio

from iii_core.transport.port import (
    ConnectionRequest,
    Limits,
    ListenAddress,
    Listener,
    Message,
    MessageTransport,
    Peer,
    Rejection,
    Serve,
)

E = TypeVar("E", bound=Exception)

PATIENCE = 40.0
"""Seconds after which a check that waits has failed."""

LIMITS = Limits(max_message=256 * 1024, handshake_timeout=PATIENCE / 2, close_timeout=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportUnderTest:
    """What the kit must be told.

    Attributes:
        open: opens the transport; called once per check.
        url: from a bound address and a target such as ``/path?query``, what ``connect`` takes.
        address: where to listen.
        tls: what listeners prove themselves with, for a transport that can; ``open`` and ``url`` must fit.
    """

    open: Callable[[], AbstractAsyncContextManager[MessageTransport]]
    url: Callable[[ListenAddress, str], str]
    address: ListenAddress = field(default_factory=lambda: ListenAddress(host="127.0.0.1", port=0))
    tls: SSLContext | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Harness:
    """A transport that listens, and what its listener got."""

    transport: MessageTransport
    bound: ListenAddress
    url: Callable[[str], str]
    requests: list[ConnectionRequest]
    served: trio.MemoryReceiveChannel[Served]
    listening: trio.CancelScope

    async def dial(self, target: str = "/") -> Peer:
        """The client's end of a new connection."""
        return await self.transport.connect(self.url(target), limits=LIMITS)

    async def pair(self, target: str = "/") -> tuple[Peer, Served]:
        """Both ends of a new connection."""
        client = await self.dial(target)
        return client, await self.served.receive()


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The server's end of a connection; its ``serve`` returns when ``finish`` is set."""

    peer: Peer
    finish: trio.Event = field(default_factory=trio.Event)
    cancelled: trio.Event = field(default_factory=trio.Event)


@asynccontextmanager
async def open_harness(
    under_test: TransportUnderTest, *, admit: Callable[[ConnectionRequest], Rejection | None] | None = None
) -> AsyncGenerator[Harness, None]:
    """Listen with `LIMITS`; the listener hands every peer over and waits."""
    requests: list[ConnectionRequest] = []

    def judge(request: ConnectionRequest) -> Rejection | None:
        requests.append(request)
        return admit(request) if admit is not None else None

    serve, served = holder()
    listener = Listener(admit=judge, serve=serve, limits=LIMITS, tls=under_test.tls)
    with trio.fail_after(PATIENCE):
        async with under_test.open() as transport, trio.open_nursery() as nursery:

            async def listen(*, task_status: trio.TaskStatus[tuple[ListenAddress, trio.CancelScope]]) -> None:
                async with trio.open_nursery() as inner:
                    bound = await inner.start(transport.listen, under_test.address, listener)
                    task_status.started((bound, inner.cancel_scope))

            bound, scope = await nursery.start(listen)
            yield Harness(
                transport=transport,
                bound=bound,
                url=lambda target: under_test.url(bound, target),
                requests=requests,
                served=served,
                listening=scope,
            )
            nursery.cancel_scope.cancel()


@dataclass(frozen=True, slots=True, kw_only=True)
class Relay:
    """A TCP port whose first connection goes to ``serve_stream``; ``ended`` is set when that returns."""

    dial: Callable[[str], Awaitable[Peer]]
    served: trio.MemoryReceiveChannel[Served]
    ended: trio.Event


@asynccontextmanager
async def open_relay(under_test: TransportUnderTest, *, sandbox: str) -> AsyncGenerator[Relay, None]:
    """Serve connections of a TCP port with ``serve_stream``, hiding that they are sockets."""
    serve, served = holder()
    listener = Listener(admit=lambda _: None, serve=serve, limits=LIMITS, tls=under_test.tls)
    ended = trio.Event()
    with trio.fail_after(PATIENCE):
        async with under_test.open() as transport, trio.open_nursery() as nursery:

            async def tunnel(stream: trio.SocketStream) -> None:
                await transport.serve_stream(trio.StapledStream(stream, stream), listener, sandbox=sandbox)
                ended.set()

            (tcp,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            await nursery.start(trio.serve_listeners, tunnel, [tcp])
            bound = ListenAddress(host="127.0.0.1", port=tcp.socket.getsockname()[1])
            yield Relay(
                dial=lambda target: transport.connect(under_test.url(bound, target), limits=LIMITS),
                served=served,
                ended=ended,
            )
            nursery.cancel_scope.cancel()


def holder() -> tuple[Serve, trio.MemoryReceiveChannel[Served]]:
    """A ``serve`` that hands every peer over and waits, and where the peers come out."""
    send_served, served = trio.open_memory_channel[Served](math.inf)

    async def serve(peer: Peer) -> None:
        connection = Served(peer=peer)
        send_served.send_nowait(connection)
        try:
            await connection.finish.wait()
        except trio.Cancelled:
            connection.cancelled.set()
            raise

    return serve, served


def text(content: str) -> Message:
    """A text message."""
    return Message(data=content.encode())


async def expect_error(kind: type[E], operation: Callable[[], Awaitable[object]]) -> E:
    """``operation`` must raise a ``kind``, which is given."""
    try:
        result = await operation()
    except kind as error:
        return error
    raise AssertionError(f"expected {kind.__name__}, got {result!r:.200}")


async def expect_broken(operation: Callable[[], Awaitable[object]]) -> None:
    """``operation`` must raise ``trio.BrokenResourceError``."""
    await expect_error(trio.BrokenResourceError, operation)


async def expect_end(peer: Peer) -> None:
    """``receive`` must raise ``trio.EndOfChannel``."""
    await expect_error(trio.EndOfChannel, peer.receive)
