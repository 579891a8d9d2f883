"""One open WebSocket, as the port wants it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio
from trio_websocket import ConnectionClosed
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError

from iii_core.transport.port import ConnectionRequest, Limits, Message, Peer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_websocket import WebSocketConnection

    from iii_plugin_websocket.stream import GuardedStream

NO_STATUS: Final = 1005
"""RFC 6455 §7.4.1: stands for a close frame without a code."""


class WebSocketPeer(Peer):
    """A `Peer` over a trio-websocket connection, whose reader runs in a task of its own.

    Text costs one decoding and one encoding per message and direction, because trio-websocket deals in ``str`` alone.

    Args:
        connection: with the handshake done.
        stream: what ``connection`` reads and writes.
        request: what was asked for; a client's own request on the client's side.
        limits: bounds of the closing handshake.
        reader: cancelling it ends the reader task.
        reader_done: set when the reader task is over.
    """

    def __init__(
        self,
        connection: WebSocketConnection,
        stream: GuardedStream,
        request: ConnectionRequest,
        limits: Limits,
        *,
        reader: trio.CancelScope,
        reader_done: trio.Event,
    ) -> None:
        self.request = request
        self._connection = connection
        self._stream = stream
        self._limits = limits
        self._reader = reader
        self._reader_done = reader_done

    async def send(self, message: Message) -> None:
        """As `Peer.send`. Raises ``ValueError`` for text that is not UTF-8."""
        payload = message.data.decode() if message.text else message.data
        try:
            await self._connection.send_message(payload)
        except (ConnectionClosed, LocalProtocolError) as error:
            raise trio.BrokenResourceError(self._reason(error)) from None

    async def send_many(self, messages: Sequence[Message]) -> None:
        """As `Peer.send_many`: what is short goes down in one write."""
        if len(messages) == 1:
            await self.send(messages[0])
            return
        try:
            async with self._stream.coalesced():
                for message in messages:
                    await self.send(message)
        except trio.ClosedResourceError:
            raise trio.BrokenResourceError(self._reason(None)) from None

    @property
    def progress(self) -> int:
        """As `Peer.progress`, in bytes."""
        return self._stream.progress

    async def receive(self) -> Message:
        """As `Peer.receive`."""
        try:
            payload = await self._connection.get_message()
        except ConnectionClosed as error:
            if self._stream.close_seen and not self._stream.aborted:
                raise trio.EndOfChannel from None
            raise trio.BrokenResourceError(self._reason(error)) from None
        if self._stream.aborted:
            raise trio.BrokenResourceError(self._reason(None))
        if isinstance(payload, str):
            return Message(data=payload.encode(), text=True)
        return Message(data=payload, text=False)

    def abort(self) -> None:
        """As `Peer.abort`."""
        self._stream.abort()
        self._reader.cancel()

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """As `Peer.close`. ``code`` 1005 sends a close frame without a code; the reason is cut at 123 bytes."""
        try:
            with trio.move_on_after(self._limits.close_timeout):
                if code == NO_STATUS:
                    await self._connection.aclose(CloseReason.NO_STATUS_RCVD)
                else:
                    await self._connection.aclose(code, reason or None)
                await self._reader_done.wait()
        finally:
            self._stream.drop()
            self._reader.cancel()

    async def finish(self) -> None:
        """Let a closing handshake that the peer began run to its end, for ``Limits.close_timeout`` at most."""
        if self._stream.close_seen:
            with trio.move_on_after(self._limits.close_timeout):
                await self._reader_done.wait()

    def _reason(self, error: Exception | None) -> str:
        return self._stream.refusal or (f"the connection is gone: {error}" if error else "the connection was dropped")
