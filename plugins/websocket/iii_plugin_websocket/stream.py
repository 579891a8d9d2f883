"""The byte stream that trio-websocket is given: the one place for what its public API cannot do.

Everything below happens in a stream between the network and trio-websocket, which therefore stays unpatched:

* *Replay.* The request head was read already (see `handshake`); the stream gives the canonical one first. Bytes that
  came behind it wait until the 101 is written, because wsproto drops what arrives before.
* *Limits.* `FrameGuard` sees every byte before wsproto does.
* *Turns.* wsproto and trio-websocket handle all frames of one read without letting anybody else run, and a read may
  hold ten thousand. So they get `TURN` frames at a time, and the connections of one sandbox take turns.
* *Abort.* ``abort()`` is synchronous and wakes a blocked ``send_all``: a peer which reads nothing can be dropped.
* *Broken sends.* A cancelled ``send_all`` may have written half a frame; every later one raises.
* *Progress.* What is sent goes down in pieces, so that it can be told how far a long message got.
* *Coalescing.* What is sent in a ``coalesced`` block goes down in one piece at its end.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, cast

import trio

from iii_plugin_websocket.guard import MessageTooLarge

if TYPE_CHECKING:
    from iii_plugin_websocket.guard import FrameGuard

RECEIVE_SIZE = 64 * 1024

TURN: Final = 8
"""Frames that are handled before other tasks run."""

_SEND_SIZE: Final = 16 * 1024

_HEAD_END = b"\r\n\r\n"
_LINGER_NOT = struct.pack("ii", 1, 0)  # close() sends RST and drops what is unsent (socket(7), SO_LINGER)


class GuardedStream(trio.abc.Stream):
    """Wraps a byte stream for one WebSocket connection.

    Args:
        stream: owned from here on.
        guard: told of every frame byte received.
        head: on the server's side, the request head to give first. Empty on the client's side, where the guard begins
            behind the response head.
        trailing: frame bytes that came behind the request head; given once something was sent.
        turns: shared by connections that are to have no more of the program's time together than one alone.

    Attributes:
        aborted: whether `abort` was called (by the guard, too), so that what is still queued is void.
        progress: bytes that the stream below has taken, in steps of `_SEND_SIZE`. trio keeps the unsent part of a
            socket's buffer short (``TCP_NOTSENT_LOWAT``), so the figure moves with the peer and not by megabytes.
        refusal: what the guard did not like.
        until_end: a scope to enter once around a wait that is pointless when nothing more can be received.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        guard: FrameGuard,
        *,
        head: bytes = b"",
        trailing: bytes = b"",
        turns: trio.StrictFIFOLock | None = None,
    ) -> None:
        self._stream = stream
        self._guard = guard
        self._head = head
        self._trailing = trailing
        self._turns = turns
        self._rest = memoryview(b"")
        self._response: bytearray | None = None if head else bytearray()
        self._accepted = trio.Event()
        self._send_scope: trio.CancelScope | None = None
        self._broken = False
        self._closed = False
        self._socket = _socket_below(stream)
        self._held: bytearray | None = None
        self._sending = trio.StrictFIFOLock()  # a pong of the reader's may meet the end of a coalesced block
        self.progress = 0
        self.aborted = False
        self.refusal: str | None = None
        self.until_end = trio.CancelScope()

    @property
    def close_seen(self) -> bool:
        """Whether the peer began a closing handshake."""
        return self._guard.close_seen

    @asynccontextmanager
    async def coalesced(self) -> AsyncGenerator[None]:
        """Hold what is sent in this block back, and send it at its end; not if the block fails. One task at a time."""
        held = self._held = bytearray()
        try:
            yield
        finally:
            self._held = None
        if held:
            await self._send(held)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """As `trio.abc.ReceiveStream.receive_some`; what was read ahead may be longer than ``max_bytes``."""
        try:
            if self._head:
                await trio.lowlevel.checkpoint()
                head, self._head = self._head, b""
                return head
            data = await self._next(max_bytes)
            end = self._guard.feed(data, self._response_part(data), TURN)
            data, self._rest = data[:end], data[end:]
        except MessageTooLarge as error:
            self.refusal = str(error)
            self.abort()
            self.until_end.cancel()
            raise trio.BrokenResourceError(self.refusal) from None
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.until_end.cancel()
            raise
        if not data:
            self.until_end.cancel()
        return bytes(data)

    async def _next(self, max_bytes: int | None) -> memoryview:
        """What the last turn left, or else what is read; each in a turn of its own."""
        data, self._rest = self._rest, memoryview(b"")
        if not data:
            data = memoryview(await self._read(max_bytes))
        elif self._turns is None:
            await trio.lowlevel.checkpoint()
        if self._turns is not None:
            async with self._turns:  # one of its waiters is let in each time that all tasks have run
                pass
        return data

    async def _read(self, max_bytes: int | None) -> bytes:
        if self._closed:
            raise trio.ClosedResourceError
        if self._trailing:
            await self._accepted.wait()
            trailing, self._trailing = self._trailing, b""
            return trailing
        return bytes(await self._stream.receive_some(max_bytes))

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """As `trio.abc.SendStream.send_all`, and ``abort`` wakes it with `trio.ClosedResourceError`."""
        if self._held is not None and not self._closed:
            await trio.lowlevel.checkpoint()
            self._held += data
        else:
            await self._send(data)

    async def _send(self, data: bytes | bytearray | memoryview) -> None:
        async with self._sending:
            if self._closed:
                raise trio.ClosedResourceError
            if self._broken:
                raise trio.BrokenResourceError("an earlier send was cancelled half-way")
            with trio.CancelScope() as self._send_scope, memoryview(data) as view:
                self._broken = True
                await self._send_pieces(view)
                self._broken = False
                self._accepted.set()
            if self._send_scope.cancelled_caught:
                raise trio.ClosedResourceError("the connection was dropped")
            self._send_scope = None

    async def _send_pieces(self, view: memoryview) -> None:
        for start in range(0, len(view), _SEND_SIZE):
            piece = view[start : start + _SEND_SIZE]
            await self._stream.send_all(piece)
            self.progress += len(piece)

    async def wait_send_all_might_not_block(self) -> None:
        """As `trio.abc.SendStream.wait_send_all_might_not_block`."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close the stream below; what is unsent is still sent."""
        self._closed = True
        await self._stream.aclose()

    def abort(self) -> None:
        """`drop`, and what was received but not taken is void."""
        self.aborted = True
        self.drop()

    def drop(self) -> None:
        """End the connection now: RST on TCP; elsewhere the owner must close the stream below forcefully."""
        if self._send_scope is not None:
            self._send_scope.cancel()
        if self._closed:
            return
        self._closed = True
        if self._socket is not None:
            if not self.close_seen:  # else our answer to the close frame may still be on its way
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
            self._socket.close()

    def _response_part(self, data: memoryview) -> int:
        """Where frames begin in ``data``: on the client's side, behind the response head."""
        if self._response is None:
            return 0
        before = len(self._response)
        self._response += data
        end = self._response.find(_HEAD_END)
        if end < 0:
            return len(data)
        self._response = None
        return end + len(_HEAD_END) - before


def _socket_below(stream: trio.abc.Stream) -> trio.socket.SocketType | None:
    """The socket that a stream ends in, with TLS or without."""
    if isinstance(stream, trio.SSLStream):
        secured = cast("trio.SSLStream[trio.abc.Stream]", stream)
        stream = secured.transport_stream
    return stream.socket if isinstance(stream, trio.SocketStream) else None
