"""One connection out of a sandbox, or into it, as a trio stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import trio

from iii_core.errors import LinkClosed, LinkError
from iii_core.link.mux import Data, Eof, Mux, MuxStream
from iii_core.sandbox import agent_wire as wire

CHANNEL: Final = 0


@dataclass(slots=True)
class Traffic:
    """Bytes that went through all connections of one link: ``sent`` into the sandbox, ``received`` out of it."""

    sent: int = 0
    received: int = 0


class TunnelStream(trio.abc.HalfCloseableStream):
    """Both directions of one TCP connection inside a sandbox to ``port``.

    As with any trio stream one task may send and another receive. Closing writes out what was sent, for up to 5 s.
    What goes through is added to ``traffic``.
    """

    def __init__(self, stream: MuxStream, port: int, traffic: Traffic | None = None) -> None:
        self._stream = stream
        self._traffic = traffic or Traffic()
        self.port = port
        self._rest = memoryview(b"")
        self._at_end = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See ``trio.abc.SendStream``."""
        try:
            await self._stream.send_data(CHANNEL, data)
        except LinkError as error:
            raise trio.BrokenResourceError(error.message) from error
        self._traffic.sent += len(data)

    async def wait_send_all_might_not_block(self) -> None:
        """See ``trio.abc.SendStream``: it is a guess, as allowed."""
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        """See ``trio.abc.HalfCloseableStream``."""
        try:
            await self._stream.send_eof(CHANNEL)
        except LinkError as error:
            raise trio.BrokenResourceError(error.message) from error

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See ``trio.abc.ReceiveStream``."""
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        if not self._rest and not self._at_end:
            self._rest = memoryview(await self._receive())
            self._at_end = not self._rest
        else:
            await trio.lowlevel.checkpoint()
        size = len(self._rest) if max_bytes is None else max_bytes
        data, self._rest = bytes(self._rest[:size]), self._rest[size:]
        return data

    async def _receive(self) -> bytes:
        try:
            item = await self._stream.receive()
        except LinkError as error:
            raise trio.BrokenResourceError(error.message) from error
        match item:
            case Data(channel=channel, data=data) if channel == CHANNEL:
                self._traffic.received += len(data)
                return data
            case Eof(channel=channel) if channel == CHANNEL:
                return b""
            case _:
                raise trio.BrokenResourceError("the connection in the sandbox broke")

    async def aclose(self) -> None:
        """See ``trio.abc.AsyncResource``."""
        await self._stream.close()


async def dial(mux: Mux, port: int, traffic: Traffic) -> TunnelStream:
    """For `Agent.dial`."""
    connected = False

    def on_message(payload: bytes) -> None:
        nonlocal connected
        connected = connected or wire.is_connected(payload)

    stream = await mux.open(wire.encode_dial(port), on_message=on_message)
    try:
        await stream.until(lambda: connected)
    except LinkClosed as error:
        stream.reset()
        mux.check()
        raise ConnectionRefusedError(f"port {port} in the sandbox: {error.message}") from error
    except BaseException:
        stream.reset("dialling was given up")
        raise
    return TunnelStream(stream, port, traffic)
