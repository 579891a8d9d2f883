"""One stream of a link: its credit, what came in, what waits to go out (``docs/protocol/link.md``, "Streams")."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from iii_core.errors import LinkClosed, LinkError, UsageError
from iii_core.link import frames

if TYPE_CHECKING:
    from iii_core.link.frames import Frame
    from iii_core.link.mux import Mux

OUTBOX_LIMIT: Final = 64 << 10
MAX_CREDIT: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes on a channel, at least one."""

    channel: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Eof:
    """Nothing more comes on that channel."""

    channel: int


@dataclass(frozen=True, slots=True)
class Message:
    """A whole message."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Closed:
    """The peer closed the stream; ``reason`` is the peer's text, hostile until escaped."""

    reason: str


Received: TypeAlias = Data | Eof | Message | Closed


class MuxStream:
    """One stream of a `Mux`.

    One task may receive and another send at the same time; several may send messages. Every method is a checkpoint.
    A cancelled `receive` takes nothing; a cancelled `send_data` may have sent a part of its data; a cancelled
    `send_message` sent all or nothing.
    """

    def __init__(self, mux: Mux, stream_id: int, on_message: Callable[[bytes], None] | None = None) -> None:
        self.id = stream_id
        self._mux = mux
        self._on_message = on_message
        self._data_credit = mux.peer.data_window
        self._message_credit = mux.peer.message_window
        self._data_allowed = mux.limits.data_window
        self._message_allowed = mux.limits.message_window
        self._data_consumed = 0
        self._message_consumed = 0
        self._inbox: deque[tuple[Data | Eof | Message, int]] = deque()
        self._outbox: deque[bytes] = deque()
        self._outbox_size = 0
        self._eof_sent: set[int] = set()
        self._eof_received: set[int] = set()
        self._closed_here = False  # by the application
        self._close_sent = False  # queued at least; also as the answer to the peer's
        self._closed: Closed | None = None
        self._holds_close = False
        self._changed = trio.lowlevel.ParkingLot()

    # --- for applications ---

    async def receive(self) -> Received:
        """What comes next, in the order in which it was sent; after `Closed` only that, again and again.

        Raises `LinkError` when the link has ended (after giving what came before), ``trio.ClosedResourceError`` when
        this side has closed the stream.
        """
        await trio.lowlevel.checkpoint()
        while not self._inbox:
            if self._closed_here:
                raise trio.ClosedResourceError
            if self._closed is not None:
                return self._closed
            self._mux.check()
            await self._changed.park()
        item, cost = self._inbox.popleft()
        self._consumed(item, cost)
        return item

    async def send_data(self, channel: int, data: bytes | bytearray | memoryview) -> None:
        """Send bytes on a channel (0 … 7); waits for credit. Returns when they are queued, not when they arrived.

        Raises `LinkError` when the link or the stream has ended, ``trio.ClosedResourceError`` after `close` or
        `send_eof`.
        """
        view = memoryview(data)
        await trio.lowlevel.checkpoint()
        while view:
            await self._sendable(channel, lambda: self._data_credit > frames.DATA_OVERHEAD)
            room = min(self._data_credit - frames.DATA_OVERHEAD, frames.MAX_DATA)
            chunk, view = view[:room], view[room:]
            self._data_credit -= len(chunk) + frames.DATA_OVERHEAD
            self._push(frames.encode_data(self.id, channel, chunk))

    async def send_eof(self, channel: int) -> None:
        """Say that nothing more comes on a channel. Idempotent; raises as `send_data` does."""
        await trio.lowlevel.checkpoint()
        if channel not in self._eof_sent:
            self._check_sending(channel)
            self._eof_sent.add(channel)
            self._push(frames.encode_frame(frames.EOF, self.id, bytes([channel])))

    async def send_message(self, payload: bytes) -> None:
        """Send one message, up to the ``max_message`` of the peer (else `UsageError`); raises as `send_data` does.

        Data that waits for credit does not hold it up.
        """
        self._mux.check_size(payload)
        await trio.lowlevel.checkpoint()
        await self._sendable(None, lambda: self._message_credit > 0)
        encoded = frames.encode_message(frames.MESSAGE, self.id, payload)
        self._message_credit -= len(encoded)
        self._push(encoded)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition()``; it is asked again whenever something arrives on this stream.

        Raises `LinkClosed` when the stream or the link has ended and it still does not hold.
        """
        await trio.lowlevel.checkpoint()
        while not condition():
            if self._closed is not None:
                raise LinkClosed(f"the peer closed the stream ({self._closed.reason!r})")
            self._mux.check()
            await self._changed.park()

    def divert_messages(self, on_message: Callable[[bytes], None]) -> None:
        """From now on give messages to ``on_message`` as `Mux.open` does, those that wait already included.

        For acceptors, whose streams begin before anyone knows what they are for. Not a checkpoint.
        """
        self._on_message = on_message
        waiting = [(item, cost) for item, cost in self._inbox if isinstance(item, Message)]
        self._inbox = deque((item, cost) for item, cost in self._inbox if not isinstance(item, Message))
        for item, cost in waiting:
            on_message(item.payload)
            self._consumed(item, cost)

    def hold_close(self) -> None:
        """Do not answer the peer's `CLOSE` until `close`; until then this side may go on sending. Not a checkpoint.

        For acceptors whose protocol has something to say after it, as the exit of a killed process.
        """
        self._holds_close = True

    async def close(self, reason: str = "") -> None:
        """Send `CLOSE` after what is queued, and drop what was received. Idempotent; done even if cancelled."""
        self._close(reason)
        await trio.lowlevel.checkpoint()

    def reset(self, reason: str = "") -> None:
        """As `close`, but drop what is queued. Not a checkpoint."""
        if not self._close_sent:
            self._drop_outbox()
        self._close(reason)

    @property
    def is_closed(self) -> bool:
        """Whether this side has closed it."""
        return self._closed_here

    @property
    def is_ended(self) -> bool:
        """Whether the peer has closed it; what it sent before may still wait to be received."""
        return self._closed is not None

    # --- for the mux ---

    def handle(self, frame: Frame) -> None:
        """Take a frame of the peer; raises `LinkError` for a violation."""
        if self._closed is not None:
            raise LinkError(f"frame of type {frame.type} after CLOSE on stream {self.id}")
        match frame.type:
            case frames.DATA:
                self._handle_data(frame)
            case frames.EOF:
                self._handle_eof(frame.payload[0])
            case frames.MESSAGE:
                self._handle_message(frame)
            case frames.CREDIT:
                self._handle_credit(*frames.decode_credit(frame.payload))
            case frames.CLOSE:
                self._handle_close(frame.payload.decode(errors="replace"))
            case _:
                raise LinkError(f"unexpected frame of type {frame.type}")
        self.notify()

    def notify(self) -> None:
        """Wake who waits for anything on this stream."""
        self._changed.unpark_all()

    def pop(self) -> bytes:
        """The next queued frame (or whole message), for the writer."""
        encoded = self._outbox.popleft()
        self._outbox_size -= len(encoded)
        self.notify()
        if self.is_finished:
            self._mux.forget(self)
        return encoded

    def has_output(self) -> bool:
        """Whether `pop` has something."""
        return bool(self._outbox)

    @property
    def is_finished(self) -> bool:
        """Whether both sides have said `CLOSE`, and ours is on its way."""
        return self._close_sent and self._closed is not None and not self._outbox

    # --- inner workings ---

    def _handle_data(self, frame: Frame) -> None:
        channel = frame.payload[0]
        self._check_receiving(channel)
        self._data_allowed -= frame.cost
        if self._data_allowed < 0:
            raise LinkError(f"more data than was granted on stream {self.id}")
        if not self._close_sent:
            self._inbox.append((Data(channel, frame.payload[1:]), frame.cost))

    def _handle_eof(self, channel: int) -> None:
        self._check_receiving(channel)
        self._eof_received.add(channel)
        if not self._close_sent:
            self._inbox.append((Eof(channel), 0))

    def _handle_message(self, frame: Frame) -> None:
        if self._message_allowed <= 0:
            raise LinkError(f"more messages than were granted on stream {self.id}")
        self._message_allowed -= frame.cost
        if self._on_message is not None:
            self._on_message(frame.payload)
            self._consumed(Message(b""), frame.cost)
        elif not self._close_sent:
            self._inbox.append((Message(frame.payload), frame.cost))

    def _handle_credit(self, data: int, messages: int) -> None:
        self._data_credit += data
        self._message_credit += messages
        if max(self._data_credit, self._message_credit) > MAX_CREDIT:
            raise LinkError(f"credit beyond all bounds on stream {self.id}")

    def _handle_close(self, reason: str) -> None:
        self._closed = Closed(reason)
        if self._holds_close and not self._close_sent:
            return
        self._drop_outbox()
        if not self._close_sent:
            self._close_sent = True
            self._mux.send_control(frames.encode_close(self.id, ""))
        self._mux.forget(self)

    def _check_receiving(self, channel: int) -> None:
        if channel > frames.MAX_CHANNEL:
            raise LinkError(f"channel {channel} on stream {self.id}")
        if channel in self._eof_received:
            raise LinkError(f"channel {channel} of stream {self.id} goes on after EOF")

    def _consumed(self, item: Data | Eof | Message, cost: int) -> None:
        """Give credit back, in halves of a window."""
        limits = self._mux.limits
        if isinstance(item, Message):
            self._message_consumed += cost
        else:
            self._data_consumed += cost
        if self._close_sent or (
            self._data_consumed * 2 < limits.data_window and self._message_consumed * 2 < limits.message_window
        ):
            return
        self._data_allowed += self._data_consumed
        self._message_allowed += self._message_consumed
        self._mux.send_control(frames.encode_credit(self.id, self._data_consumed, self._message_consumed))
        self._data_consumed = self._message_consumed = 0

    async def _sendable(self, channel: int | None, has_credit: Callable[[], bool]) -> None:
        self._check_sending(channel)
        while not has_credit() or self._outbox_size >= OUTBOX_LIMIT:
            await self._changed.park()
            self._check_sending(channel)

    def _check_sending(self, channel: int | None) -> None:
        if channel is not None and not 0 <= channel <= frames.MAX_CHANNEL:
            raise UsageError(f"there is no channel {channel}")
        if self._closed_here or channel in self._eof_sent:
            raise trio.ClosedResourceError
        self._mux.check()
        if self._closed is not None and not self._holds_close:
            raise LinkClosed(f"the peer closed the stream ({self._closed.reason!r})")

    def _push(self, encoded: bytes) -> None:
        self._outbox.append(encoded)
        self._outbox_size += len(encoded)
        self._mux.schedule(self)

    def _drop_outbox(self) -> None:
        """Forget what is queued, but not a `CLOSE` among it."""
        close_is_queued = self._close_sent and bool(self._outbox)
        self._outbox.clear()
        self._outbox_size = 0
        if close_is_queued:
            self._mux.send_control(frames.encode_close(self.id, ""))

    def _close(self, reason: str) -> None:
        self._inbox.clear()
        self._closed_here = True
        if self._close_sent:
            return
        self._close_sent = True
        self._push(frames.encode_close(self.id, reason))
        self.notify()
