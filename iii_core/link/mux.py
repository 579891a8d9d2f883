"""Both ends of a framed link for trio (``docs/protocol/link.md``).

Two tasks serve a link: one reads and hands every frame to its stream at once, one writes what streams and control
frames have queued. Applications wait only on their own stream's credit, so a slow one stalls nobody else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio

from iii_core.errors import LinkClosed, LinkError, LinkSilent, UsageError
from iii_core.link import frames
from iii_core.link.frames import Decoder, Frame, Hello
from iii_core.link.handshake import RECEIVE_SIZE, Handshake, Role, shake_hands
from iii_core.link.limits import LinkLimits
from iii_core.link.nursery import open_service_nursery
from iii_core.link.streams import Closed, Data, Eof, Message, MuxStream, Received

__all__ = [
    "Closed",
    "Data",
    "Eof",
    "LinkLimits",
    "Message",
    "Mux",
    "MuxStream",
    "Received",
    "Role",
    "open_mux",
]

_BATCH: Final = 64 << 10
_MAX_STREAM_ID: Final = 2**32 - 1


class Mux:
    """One end of a link. Obtained from `open_mux`.

    Attributes:
        peer: what the other side said of itself.
        limits: what this side allows.
        incoming: (payload, stream) of each stream that the peer opens; ends with the link. An initiator gets none.
    """

    def __init__(self, handshake: Handshake, role: Role, limits: LinkLimits) -> None:
        self.peer: Hello = handshake.theirs
        self.limits = limits
        self.features = handshake.ours.features & handshake.theirs.features
        self._hello = handshake.ours.encode()
        self._role = role
        self._streams: dict[int, MuxStream] = {}
        self._last_id = 0
        self._slot_freed = trio.lowlevel.ParkingLot()
        self._offer, self.incoming = trio.open_memory_channel[tuple[bytes, MuxStream]](limits.max_streams)
        self._outgoing = _Outgoing()
        self._ended = trio.Event()
        self._error: LinkError | None = None

    # --- for applications ---

    async def open(self, payload: bytes, *, on_message: Callable[[bytes], None] | None = None) -> MuxStream:
        """Open a stream (initiator only); waits while as many are open as the peer allows.

        ``on_message`` gets the stream's messages the moment they arrive, also while data waits to be received and after
        `MuxStream.close`, instead of `MuxStream.receive`; it must not block, and a `LinkError` from it ends the link.

        Raises `LinkError` when the link has ended, `UsageError` for a payload that is too large. When cancelled, no
        stream was opened.
        """
        assert self._role is Role.INITIATOR
        self.check_size(payload)
        await trio.lowlevel.checkpoint()
        self.check()
        while len(self._streams) >= min(self.limits.max_streams, self.peer.max_streams):
            await self._slot_freed.park()
            self.check()
        if self._last_id == _MAX_STREAM_ID:
            raise LinkError("the link has used up its stream ids")
        self._last_id += 1
        stream = self._streams[self._last_id] = MuxStream(self, self._last_id, on_message)
        self.send_control(frames.encode_message(frames.OPEN, stream.id, payload))
        return stream

    async def wait_closed(self) -> None:
        """Wait until the link has ended, whyever; `check` then raises the reason."""
        await self._ended.wait()

    def check(self) -> None:
        """Raise why the link has ended, if it has: `LinkClosed` if it is gone, `LinkError` if the peer broke a rule."""
        if self._error is not None:
            raise type(self._error)(self._error.message, hint=self._error.hint) from self._error

    def fail(self, error: LinkError) -> None:
        """End the link: the peer broke a rule of the protocol above it."""
        self._end(error)

    # --- for streams ---

    def check_size(self, payload: bytes) -> None:
        """Raise `UsageError` for what the peer would not take."""
        if len(payload) > self.peer.max_message:
            raise UsageError(f"a message of {len(payload)} bytes is too long: the peer takes {self.peer.max_message}")

    def schedule(self, stream: MuxStream) -> None:
        """The stream has output."""
        self._outgoing.schedule(stream)

    def send_control(self, encoded: bytes) -> None:
        """Send ahead of all streams."""
        self._outgoing.push(encoded)

    def forget(self, stream: MuxStream) -> None:
        """Both sides have closed the stream."""
        if self._streams.pop(stream.id, None) is not None:
            self._slot_freed.unpark()

    # --- tasks, run by open_mux ---

    async def read(self, stream: trio.abc.Stream, decoder: Decoder) -> None:
        """Read and dispatch until the link ends."""
        try:
            while True:
                while (frame := decoder.next_frame()) is not None:
                    self._dispatch(frame)
                with trio.move_on_after(self.limits.dead_after or float("inf")):
                    data = await stream.receive_some(RECEIVE_SIZE)
                    if not data:
                        raise LinkClosed("the link was cut within a frame" if decoder.in_frame else "the link ended")
                    decoder.feed(data)
                    continue
                raise LinkSilent(f"the peer was silent for {self.limits.dead_after} s")
        except LinkError as error:
            self._end(error)
        except trio.BrokenResourceError:
            self._end(LinkClosed("the link broke"))

    async def write(self, stream: trio.abc.Stream) -> None:
        """Write what is queued until the link ends."""
        try:
            while True:
                batch = await self._outgoing.next_batch()
                with trio.move_on_after(self.limits.send_timeout):
                    await stream.send_all(batch)
                    continue
                raise LinkClosed(f"the peer took nothing for {self.limits.send_timeout} s")
        except LinkError as error:
            self._end(error)
        except trio.BrokenResourceError:
            self._end(LinkClosed("the link broke"))

    async def ping(self, interval: float) -> None:
        """Ask for a sign of life every ``interval`` seconds."""
        token = 0
        while True:
            await trio.sleep(interval)
            token += 1
            self.send_control(frames.encode_token(frames.PING, token))

    async def flush(self) -> None:
        """Wait until all that is queued was written, or the link has ended."""
        await self._outgoing.drained()

    # --- inner workings ---

    def _dispatch(self, frame: Frame) -> None:
        match frame.type:
            case frames.PING:
                self._outgoing.push_once(frames.encode_token(frames.PONG, frames.decode_token(frame.payload)))
            case frames.PONG:
                pass  # that something arrived is all that counts
            case frames.HELLO:
                self._handle_hello(frame)
            case frames.OPEN:
                self._handle_open(frame)
            case _:
                stream = self._streams.get(frame.stream)
                if stream is None:
                    raise LinkError(f"frame of type {frame.type} for stream {frame.stream}, which is not open")
                stream.handle(frame)

    def _handle_hello(self, frame: Frame) -> None:
        if frames.decode_epochs(frame.payload)[0] != self.peer.epoch:
            raise LinkError("HELLO of another epoch")
        if self._role is Role.ACCEPTOR:
            self._outgoing.push_once(self._hello)

    def _handle_open(self, frame: Frame) -> None:
        if self._role is not Role.ACCEPTOR or frame.stream <= self._last_id:
            raise LinkError(f"OPEN of stream {frame.stream}")
        if len(self._streams) >= self.limits.max_streams:
            raise LinkError(f"more than {self.limits.max_streams} open streams")
        self._last_id = frame.stream
        stream = self._streams[frame.stream] = MuxStream(self, frame.stream)
        try:
            self._offer.send_nowait((frame.payload, stream))
        except (trio.WouldBlock, trio.BrokenResourceError):
            stream.reset("busy")

    def _end(self, error: LinkError) -> None:
        if self._error is not None:
            return
        self._error = error
        self._outgoing.close()
        self._offer.close()
        self._ended.set()
        self._slot_freed.unpark_all()
        for stream in self._streams.values():
            stream.notify()


class _Outgoing:
    """What waits to be written: control frames first, then streams in turn, one frame each."""

    def __init__(self) -> None:
        self._control: deque[bytes] = deque()
        self._latest: dict[int, bytes] = {}
        self._turns: deque[MuxStream] = deque()
        self._scheduled: set[MuxStream] = set()
        self._closed = False
        self._writing = False
        self._changed = trio.lowlevel.ParkingLot()

    def push(self, encoded: bytes) -> None:
        if not self._closed:
            self._control.append(encoded)
            self._changed.unpark_all()

    def push_once(self, encoded: bytes) -> None:
        """Of frames of the same type only the latest waits: a peer that asks and never reads costs nothing."""
        if not self._closed:
            self._latest[encoded[4]] = encoded
            self._changed.unpark_all()

    def schedule(self, stream: MuxStream) -> None:
        if not self._closed and stream not in self._scheduled:
            self._scheduled.add(stream)
            self._turns.append(stream)
            self._changed.unpark_all()

    def close(self) -> None:
        self._closed = True
        self._control.clear()
        self._latest.clear()
        self._turns.clear()
        self._changed.unpark_all()

    async def next_batch(self) -> bytes:
        """About `_BATCH` bytes of whole frames, at least one."""
        self._writing = False
        while not (batch := self._collect()):
            self._changed.unpark_all()
            await self._changed.park()
        self._writing = True
        return batch

    async def drained(self) -> None:
        while not self._closed and (self._writing or self._control or self._latest or self._turns):
            await self._changed.park()

    def _collect(self) -> bytes:
        batch = [*self._latest.values(), *self._control]
        self._latest.clear()
        self._control.clear()
        size = sum(map(len, batch))
        while self._turns and size < _BATCH:
            stream = self._turns.popleft()
            if not stream.has_output():  # was reset meanwhile
                self._scheduled.discard(stream)
                continue
            encoded = stream.pop()
            batch.append(encoded)
            size += len(encoded)
            if stream.has_output():
                self._turns.append(stream)
            else:
                self._scheduled.discard(stream)
        return b"".join(batch)


@asynccontextmanager
async def open_mux(
    stream: trio.abc.Stream,
    *,
    role: Role,
    limits: LinkLimits | None = None,
    handshake: Handshake | None = None,
) -> AsyncGenerator[Mux]:
    """Run one end of a link over ``stream``, which belongs to it from now on and is closed at the end.

    ``handshake`` is given by who has shaken hands already (`iii_core.link.handshake.shake_hands`). When the link ends
    by itself the body is not disturbed: it learns of it from whatever it calls next, or from `Mux.wait_closed`.
    Leaving the body sends what is queued (for at most ``limits.close_timeout``), leaving it by an exception does not.

    Raises:
        LinkError: the peer does not speak this protocol.
        LinkClosed: the peer did not answer in time, or the stream ended before it did.
    """
    limits = limits or LinkLimits()
    try:
        if handshake is None:
            with trio.move_on_after(limits.hello_timeout):
                handshake = await shake_hands(stream, role=role, limits=limits)
        if handshake is None:
            raise LinkClosed(f"the peer did not say HELLO within {limits.hello_timeout} s")
        mux = Mux(handshake, role, limits)
        async with open_service_nursery() as nursery:
            nursery.start_soon(mux.read, stream, handshake.decoder)
            nursery.start_soon(mux.write, stream)
            if limits.ping_interval is not None:
                nursery.start_soon(mux.ping, limits.ping_interval)
            yield mux
            with trio.move_on_after(limits.close_timeout):
                await mux.flush()
    finally:
        await trio.aclose_forcefully(stream)
