"""A transport without sockets: for tests of the engine and of what is built on it.

It keeps the contract of `iii_core.transport.port` (the conformance kit runs over it) and is deterministic: a message is
there when ``send`` returns, a connection that is not read stops its sender after ``buffer_bytes``. ::

    network = MemoryNetwork()
    async with network.open_transport() as transport, trio.open_nursery() as nursery:
        address = await nursery.start(transport.listen, ListenAddress(host="127.0.0.1", port=0), listener)
        peer = await transport.connect(f"memory://127.0.0.1:{address.port}/")

As a plugin record for `iii_core.open_engine`, under the name ``memory``: ``MemoryPlugins(network)``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import trio

from iii_core.errors import AddressInUse, ConfigError, EngineError, EngineNotRunning
from iii_core.records import Record, Transport
from iii_core.transport.port import (
    ConnectionRequest,
    Limits,
    ListenAddress,
    Listener,
    Message,
    MessageTransport,
    Peer,
)

if TYPE_CHECKING:
    from iii_core.records import OpenContext

R = TypeVar("R", bound=Record)


class _State(Enum):
    OPEN = auto()
    CLOSED = auto()
    BROKEN = auto()


class _Pipe:
    """One direction of a connection: a queue of messages, bounded in bytes."""

    def __init__(self, capacity: int, max_message: int) -> None:
        self.max_message = max_message
        self.state = _State.OPEN
        self.messages: deque[Message] = deque()
        self._capacity = capacity
        self._size = 0
        self._moved = trio.lowlevel.ParkingLot()

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        while self.state is _State.OPEN and self.messages and self._size + len(message.data) > self._capacity:
            await self._moved.park()
        if self.state is not _State.OPEN:
            raise trio.BrokenResourceError("the connection is gone")
        self.messages.append(message)
        self._size += len(message.data)
        self._moved.unpark_all()

    async def receive(self) -> list[Message]:
        """All messages that are there, at least one."""
        await trio.lowlevel.checkpoint()
        while not self.messages:
            if self.state is _State.CLOSED:
                raise trio.EndOfChannel
            if self.state is _State.BROKEN:
                raise trio.BrokenResourceError("the connection was dropped")
            await self._moved.park()
        taken = list(self.messages)
        self.discard()
        return taken

    def end(self, state: _State) -> None:
        if self.state is _State.OPEN:
            self.state = state
        self._moved.unpark_all()

    def discard(self) -> None:
        self.messages.clear()
        self._size = 0
        self._moved.unpark_all()


class MemoryPeer(Peer):
    """One end of a connection.

    Attributes:
        close_code: of the closing handshake, once either end began one; None for a connection that is open or was
            dropped without one.
        aborted: whether either end dropped the connection.
        served: set when the listener has done with the connection, which may be a while after it has ended.
    """

    def __init__(self, request: ConnectionRequest, incoming: _Pipe, outgoing: _Pipe) -> None:
        self.request = request
        self.close_code: int | None = None
        self.aborted = False
        self.served = trio.Event()
        self._sent = 0
        self._incoming = incoming
        self._outgoing = outgoing
        self._received: deque[Message] = deque()
        self._other: MemoryPeer | None = None

    @classmethod
    def pair(
        cls, request: ConnectionRequest, client_limits: Limits, server_limits: Limits, buffer_bytes: int
    ) -> tuple[MemoryPeer, MemoryPeer]:
        """Both ends of a new connection: the client's, the server's."""
        up = _Pipe(buffer_bytes, server_limits.max_message)
        down = _Pipe(buffer_bytes, client_limits.max_message)
        client, server = cls(request, down, up), cls(request, up, down)
        client._other, server._other = server, client
        client.served = server.served
        return client, server

    async def send(self, message: Message) -> None:
        """As `Peer.send`. Raises ``ValueError`` for text that is not UTF-8."""
        if message.text:
            message.data.decode()
        if len(message.data) > self._outgoing.max_message:
            self.abort()
        await self._outgoing.send(message)
        self._sent += 1

    @property
    def progress(self) -> int:
        """As `Peer.progress`, in messages."""
        return self._sent

    async def receive(self) -> Message:
        """As `Peer.receive`."""
        if not self._received:
            self._received.extend(await self._incoming.receive())
        else:
            await trio.lowlevel.checkpoint()
        return self._received.popleft()

    async def receive_many(self) -> Sequence[Message]:
        """As `Peer.receive_many`."""
        messages = [await self.receive(), *self._received]
        self._received.clear()
        return messages

    def abort(self) -> None:
        """As `Peer.abort`."""
        if self._outgoing.state is not _State.OPEN and self._incoming.state is not _State.OPEN:
            return
        for peer in (self, self._other):
            if peer is not None:
                peer.aborted = True
        self._received.clear()
        self._incoming.end(_State.BROKEN)
        self._incoming.discard()
        self._outgoing.end(_State.BROKEN)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """As `Peer.close`; the other side's answer is not waited for, because there is nothing to lose."""
        del reason
        if self._outgoing.state is _State.OPEN:
            for peer in (self, self._other):
                if peer is not None:
                    peer.close_code = code
            self._outgoing.end(_State.CLOSED)
            self._incoming.end(_State.CLOSED)
            self._incoming.discard()
        await trio.lowlevel.checkpoint()


@dataclass(frozen=True, slots=True)
class _Listening:
    listener: Listener
    nursery: trio.Nursery


@dataclass(slots=True)
class MemoryNetwork:
    """The addresses that transports listen on, in place of the system's. ``buffer_bytes`` is per direction."""

    buffer_bytes: int = 64 * 1024
    listening: dict[tuple[str, int], _Listening] = field(default_factory=dict[tuple[str, int], _Listening])

    @asynccontextmanager
    async def open_transport(self) -> AsyncGenerator[MemoryTransport]:
        """A transport on this network. Its end drops the connections that it dialled."""
        transport = MemoryTransport(self)
        try:
            yield transport
        finally:
            transport.drop_dialled()


class MemoryTransport(MessageTransport):
    """`MessageTransport` over a `MemoryNetwork`. URLs are ``memory://host:port/path?query``."""

    def __init__(self, network: MemoryNetwork) -> None:
        self._network = network
        self._dialled: list[MemoryPeer] = []

    async def listen(
        self,
        address: ListenAddress,
        listener: Listener,
        *,
        task_status: trio.TaskStatus[ListenAddress] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """As `MessageTransport.listen`."""
        await trio.lowlevel.checkpoint()
        if listener.tls is not None:
            raise ConfigError("the memory transport has no TLS", hint="leave `tls` out, or use the websocket transport")
        port = address.port or max((port for _, port in self._network.listening), default=49_999) + 1
        key = (address.host, port)
        if key in self._network.listening:
            raise AddressInUse(f"{address.host}:{port} is taken", hint="choose another port, or 0 for a free one")
        try:
            async with trio.open_nursery() as nursery:
                self._network.listening[key] = _Listening(listener, nursery)
                task_status.started(ListenAddress(host=address.host, port=port))
                await trio.sleep_forever()
        finally:
            del self._network.listening[key]

    async def serve_stream(
        self, stream: trio.abc.Stream, listener: Listener, *, remote: str | None = None, sandbox: str | None = None
    ) -> None:
        """Not offered: this transport moves messages, never bytes. Raises `EngineError`."""
        raise EngineError("the memory transport cannot serve a byte stream", hint="use the websocket transport")

    async def connect(
        self, url: str, *, headers: Mapping[str, str] | None = None, limits: Limits | None = None
    ) -> MemoryPeer:
        """As `MessageTransport.connect`. A refusal is an `EngineError` that names the HTTP status."""
        await trio.lowlevel.checkpoint()
        parts = urlsplit(url)
        listening = self._network.listening.get((parts.hostname or "", parts.port or 0))
        if listening is None:
            raise EngineNotRunning(f"nothing listens at {url}")
        given = {"host": parts.netloc, **{name.lower(): value for name, value in (headers or {}).items()}}
        request = ConnectionRequest(
            path=parts.path or "/", query=parts.query, headers=tuple(given.items()), remote="127.0.0.1"
        )
        rejection = listening.listener.admit(request)
        if rejection is not None:
            raise EngineError(f"{url} answered {rejection.status}: {rejection.body}")
        client, server = MemoryPeer.pair(
            request, limits or Limits(), listening.listener.limits, self._network.buffer_bytes
        )
        self._dialled.append(client)
        listening.nursery.start_soon(_serve, listening.listener, server)
        return client

    def drop_dialled(self) -> None:
        """Drop every connection that this transport dialled."""
        for peer in self._dialled:
            peer.abort()
        self._dialled.clear()


class MemoryPlugins:
    """Plugins of a program under test: the memory transport of one network, and further records."""

    def __init__(self, network: MemoryNetwork, *records: Record) -> None:
        self._records: tuple[Record, ...] = (*records, memory_transport(network))

    def collect(self, kind: type[R]) -> dict[str, R]:
        """As `iii_core.host.PluginHost.collect`."""
        return {record.name: record for record in self._records if isinstance(record, kind)}


def memory_transport(network: MemoryNetwork) -> Transport:
    """The record of the memory transport."""

    @asynccontextmanager
    async def open_transport(config: Any, context: OpenContext) -> AsyncGenerator[MessageTransport]:
        del config, context
        async with network.open_transport() as transport:
            yield transport

    return Transport(name="memory", schemes=("memory",), open=open_transport)


async def _serve(listener: Listener, peer: MemoryPeer) -> None:
    try:
        await listener.serve(peer)
    finally:
        peer.abort()
        peer.served.set()
