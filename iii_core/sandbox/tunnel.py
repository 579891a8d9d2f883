"""One connection out of a sandbox, as an ordinary trio stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from iii_core.errors import LinkError
from iii_core.link.mux import Closed, Data, Eof

if TYPE_CHECKING:
    from iii_core.link.mux import MuxStream

CHANNEL: Final = 0


class TunnelStream(trio.abc.HalfCloseableStream):
    """A tunnel stream of the agent protocol (``docs/protocol/agent.md``, "TUNNEL") with trio's stream contract.

    One task may send and one receive at the same time.
    """

    def __init__(self, stream: MuxStream) -> None:
        self._stream = stream
        self._rest = b""
        self._ended = False
        self._closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all; waits for the guest's reader. Raises ``trio.BrokenResourceError`` when the connection is gone."""
        if self._closed:
            raise trio.ClosedResourceError
        try:
            await self._stream.send_data(CHANNEL, data)
        except LinkError as error:
            raise trio.BrokenResourceError from error

    async def wait_send_all_might_not_block(self) -> None:
        """Returns at once: credit is waited for by `send_all`."""
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        """Half close. Idempotent."""
        if self._closed:
            raise trio.ClosedResourceError
        try:
            await self._stream.send_eof(CHANNEL)
        except LinkError as error:
            raise trio.BrokenResourceError from error

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What the worker sent, b"" at its end."""
        if self._closed:
            raise trio.ClosedResourceError
        if not self._rest and not self._ended:
            self._rest = await self._receive()
        else:
            await trio.lowlevel.checkpoint()
        size = len(self._rest) if max_bytes is None else max_bytes
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    async def _receive(self) -> bytes:
        try:
            match await self._stream.receive():
                case Data(data=data):
                    return data
                case Eof():
                    self._ended = True
                    return b""
                case Closed():
                    raise trio.BrokenResourceError("the worker's end of the connection broke")
                case other:
                    raise trio.BrokenResourceError(f"unexpected {type(other).__name__} in a tunnel")
        except LinkError as error:
            raise trio.BrokenResourceError from error

    async def aclose(self) -> None:
        """Close; what was sent still arrives. Idempotent."""
        self._closed = True
        await self._stream.close()
