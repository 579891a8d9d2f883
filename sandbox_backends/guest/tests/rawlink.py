"""A host that speaks the link frame by frame, and may say what it likes."""

from __future__ import annotations

import trio

from iii_core.link import frames
from iii_core.link.frames import Decoder, Frame, Hello

WINDOW = 1 << 20


class RawHost:
    """The initiator's end of a link, without manners."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.decoder = Decoder(max_message=1 << 20)
        self.theirs: Hello | None = None

    async def send(self, *encoded: bytes) -> None:
        await self.stream.send_all(b"".join(encoded))

    async def receive(self) -> Frame:
        """The next frame; fails after 30 s, raises EOFError at the end."""
        with trio.fail_after(30):
            while (frame := self.decoder.next_frame()) is None:
                data = await self.stream.receive_some(65536)
                if not data:
                    raise EOFError
                self.decoder.feed(data)
        return frame

    async def hello(self, epoch: int = 7, *, before: bytes = b"", version: int = 1) -> Hello:
        """Begin (anew), and give the agent's answer to this epoch."""
        ours = Hello(
            epoch=epoch, version=version, max_message=1 << 20, max_streams=8, data_window=WINDOW, message_window=WINDOW
        )
        await self.send(before, ours.encode())
        self.decoder.desynchronise()
        while True:
            frame = await self.receive()
            if frame.type == frames.HELLO and frames.decode_epochs(frame.payload)[1] == epoch:
                return Hello.decode(frame.payload)
            self.decoder.desynchronise()

    async def collect(self, stream: int) -> list[tuple[int, bytes]]:
        """Type and payload of the frames of a stream, up to `CLOSE`."""
        seen: list[tuple[int, bytes]] = []
        while not seen or seen[-1][0] != frames.CLOSE:
            frame = await self.receive()
            if frame.stream == stream:
                seen.append((frame.type, frame.payload))
        return seen


def opening(stream: int, payload: bytes) -> bytes:
    return frames.encode_message(frames.OPEN, stream, payload)


def message(stream: int, payload: bytes) -> bytes:
    return frames.encode_message(frames.MESSAGE, stream, payload)
