"""A WebSocket client that is nothing but a socket, so that it can misbehave."""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from iii_core.transport.port import ListenAddress, Listener, Message, MessageTransport, Peer

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10

UPGRADE = (
    "GET {target} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{extra}\r\n"
)


def upgrade_head(target: str = "/", extra: str = "") -> bytes:
    return UPGRADE.format(target=target, extra=extra).encode()


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = True, rsv: int = 0) -> bytes:
    size, flag = len(payload), 0x80 if masked else 0
    if size < 126:
        length = bytes([flag | size])
    elif size < 2**16:
        length = bytes([flag | 126]) + struct.pack("!H", size)
    else:
        length = bytes([flag | 127]) + struct.pack("!Q", size)
    if masked:
        key = os.urandom(4)
        payload = key + bytes(byte ^ key[index % 4] for index, byte in enumerate(payload))
    return bytes([(0x80 if fin else 0) | rsv | opcode]) + length + payload


@dataclass
class Wire:
    """One connection to the listener, TCP or TLS."""

    stream: trio.abc.Stream
    buffer: bytes = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def read(self, size: int) -> bytes:
        while len(self.buffer) < size:
            data = await self.stream.receive_some()
            if not data:
                raise EOFError(self.buffer)
            self.buffer += data
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    async def read_to_end(self) -> bytes:
        """What comes until the connection ends, by FIN or RST."""
        try:
            while data := await self.stream.receive_some():
                self.buffer += data
        except trio.BrokenResourceError:
            pass
        return self.buffer

    async def read_to_reset(self) -> None:
        """Returns at a FIN, and raises for a RST."""
        while await self.stream.receive_some():
            pass

    async def upgrade(self, target: str = "/", extra: str = "", *, behind: bytes = b"") -> str:
        """Open a WebSocket; gives the response head."""
        await self.send(upgrade_head(target, extra) + behind)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await self.read(1)
        assert head.startswith(b"HTTP/1.1 101 "), head
        return head.decode()

    async def read_frame(self) -> tuple[int, bytes]:
        first, second = await self.read(2)
        assert first & 0x80, "the engine fragments nothing"
        assert not second & 0x80, "a server masks nothing"
        size = second & 0x7F
        if size > 125:
            size = int.from_bytes(await self.read(2 if size == 126 else 8), "big")
        return first & 0x0F, await self.read(size)


@dataclass
class Server:
    """A listener whose peers echo; ``outcomes`` says how each ended."""

    address: ListenAddress
    outcomes: trio.MemoryReceiveChannel[str]
    peers: list[Peer]

    @asynccontextmanager
    async def wire(self) -> AsyncGenerator[Wire, None]:
        async with await trio.open_tcp_stream(self.address.host, self.address.port) as stream:
            yield Wire(stream)

    async def assert_alive(self) -> None:
        """Others are still served."""
        async with self.wire() as wire:
            await wire.upgrade()
            await wire.send(frame(TEXT, b"alive?"))
            assert await wire.read_frame() == (TEXT, b"alive?")
            await wire.send(frame(CLOSE, b"\x03\xe8"))
            assert await wire.read_frame() == (CLOSE, b"\x03\xe8")
        assert await self.outcomes.receive() == "end"


@asynccontextmanager
async def serve_echo(
    transport: MessageTransport, make_listener: Callable[..., Listener]
) -> AsyncGenerator[Server, None]:
    """``make_listener`` is given ``serve``."""
    send_outcome, outcomes = trio.open_memory_channel[str](100)
    peers: list[Peer] = []

    async def echo(peer: Peer) -> None:
        peers.append(peer)
        try:
            while True:
                message: Message = await peer.receive()
                await peer.send(message)
        except trio.EndOfChannel:
            send_outcome.send_nowait("end")
        except trio.BrokenResourceError:
            send_outcome.send_nowait("broken")

    with trio.fail_after(40):
        async with trio.open_nursery() as nursery:
            address = await nursery.start(
                transport.listen, ListenAddress(host="127.0.0.1", port=0), make_listener(echo)
            )
            yield Server(address, outcomes, peers)
            nursery.cancel_scope.cancel()
