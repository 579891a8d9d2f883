"""The codec of the framed link, without I/O (``docs/protocol/link.md``, "Frames" and "HELLO").

`encode_*` make bytes; a `Decoder` is fed bytes as they come and gives whole frames, the `PART`s of a message joined.
Nothing here keeps more than one unfinished frame and one unfinished message.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

from iii_core.errors import LinkError

VERSION: Final = 1
MAGIC: Final = b"\xf1iii-link\0\r\n\x1a\n\xc3("
MAX_FRAME: Final = 65536
HEADER: Final = 9
MAX_PAYLOAD: Final = MAX_FRAME - HEADER
MAX_DATA: Final = 16384
DATA_OVERHEAD: Final = HEADER + 1
MAX_CHANNEL: Final = 7
MAX_REASON: Final = 1024
MAX_SKIP: Final = 4 << 20
RESYNC: Final = bytes(MAX_FRAME)

HELLO: Final = 1
PING: Final = 2
PONG: Final = 3
PART: Final = 4
OPEN: Final = 5
MESSAGE: Final = 6
DATA: Final = 7
EOF: Final = 8
CREDIT: Final = 9
CLOSE: Final = 10

_HEADER: Final = struct.Struct("<IBI")
_DATA_HEADER: Final = struct.Struct("<IBIB")
_LENGTH: Final = struct.Struct("<I")
_HELLO: Final = struct.Struct("<16sQQHHQIIII")
_EPOCHS: Final = struct.Struct("<QQ")
_MAX_HELLO: Final = 512
_HELLO_START: Final = bytes([HELLO, 0, 0, 0, 0]) + MAGIC
_TOKEN: Final = struct.Struct("<Q")
_CREDIT: Final = struct.Struct("<II")
_PAYLOAD_RANGE: Final = {  # type: (smallest, largest)
    HELLO: (_HELLO.size, _MAX_HELLO),
    PING: (_TOKEN.size, _TOKEN.size),
    PONG: (_TOKEN.size, _TOKEN.size),
    PART: (1, MAX_PAYLOAD),
    OPEN: (0, MAX_PAYLOAD),
    MESSAGE: (0, MAX_PAYLOAD),
    DATA: (2, 1 + MAX_DATA),
    EOF: (1, 1),
    CREDIT: (_CREDIT.size, _CREDIT.size),
    CLOSE: (0, MAX_REASON),
}
_OF_LINK: Final = frozenset({HELLO, PING, PONG})


class Frame(NamedTuple):
    """One frame, or one message of several frames. ``cost`` is its size on the wire, which is what credit counts."""

    type: int
    stream: int
    payload: bytes
    cost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """What one side says about itself; sizes in bytes. ``peer_epoch`` is 0 or the epoch that this answers."""

    epoch: int
    peer_epoch: int = 0
    version: int = VERSION
    features: int = 0
    max_message: int
    max_streams: int
    data_window: int
    message_window: int

    def encode(self) -> bytes:
        """As a whole frame."""
        return encode_frame(
            HELLO,
            0,
            _HELLO.pack(
                MAGIC,
                self.epoch,
                self.peer_epoch,
                self.version,
                0,
                self.features,
                self.max_message,
                self.max_streams,
                self.data_window,
                self.message_window,
            ),
        )

    @classmethod
    def decode(cls, payload: bytes) -> Hello:
        """Raises `LinkError` for another version or values out of bounds."""
        magic, epoch, peer_epoch, version, _, features, *limits = _HELLO.unpack_from(payload)
        if magic != MAGIC or epoch == 0:
            raise LinkError("malformed HELLO")
        if version != VERSION:
            raise LinkError(
                f"the peer speaks version {version} of the link, this side speaks version {VERSION}",
                hint="engine, command and guest agent must be of the same release; restart what is older",
                details={"theirs": version, "ours": VERSION},
            )
        max_message, max_streams, data_window, message_window = limits
        if max_message < 1024 or max_streams < 1 or data_window < 32768 or message_window < 1024:
            raise LinkError("HELLO with limits below the least allowed")
        return cls(
            epoch=epoch,
            peer_epoch=peer_epoch,
            version=version,
            features=features,
            max_message=max_message,
            max_streams=max_streams,
            data_window=data_window,
            message_window=message_window,
        )


def encode_frame(type: int, stream: int, payload: bytes | memoryview = b"") -> bytes:
    """One frame; ``payload`` must fit."""
    size = len(payload)
    low, high = _PAYLOAD_RANGE[type]
    assert low <= size <= high, f"frame type {type} with a payload of {size} bytes"
    return _HEADER.pack(size + HEADER - _LENGTH.size, type, stream) + payload


def encode_message(type: int, stream: int, payload: bytes) -> bytes:
    """`OPEN` or `MESSAGE`, with as many `PART`s in front as it takes."""
    if len(payload) <= MAX_PAYLOAD:
        return encode_frame(type, stream, payload)
    view = memoryview(payload)
    last = (len(payload) - 1) // MAX_PAYLOAD * MAX_PAYLOAD
    parts = [encode_frame(PART, stream, view[at : at + MAX_PAYLOAD]) for at in range(0, last, MAX_PAYLOAD)]
    return b"".join([*parts, encode_frame(type, stream, view[last:])])


def encode_data(stream: int, channel: int, data: bytes | memoryview) -> bytes:
    """1 … `MAX_DATA` bytes on a channel."""
    assert 1 <= len(data) <= MAX_DATA
    return b"".join((_DATA_HEADER.pack(len(data) + DATA_OVERHEAD - _LENGTH.size, DATA, stream, channel), data))


def encode_token(type: int, token: int) -> bytes:
    """`PING` or `PONG`."""
    return encode_frame(type, 0, _TOKEN.pack(token))


def encode_credit(stream: int, data: int, messages: int) -> bytes:
    """Give back bytes of both kinds."""
    return encode_frame(CREDIT, stream, _CREDIT.pack(data, messages))


def encode_close(stream: int, reason: str) -> bytes:
    """``reason`` is cut where it is too long."""
    return encode_frame(CLOSE, stream, reason.encode(errors="replace")[:MAX_REASON])


def decode_epochs(hello: bytes) -> tuple[int, int]:
    """``epoch`` and ``peer_epoch`` of a `HELLO`'s payload, which are at the same place in all versions."""
    epoch, peer_epoch = _EPOCHS.unpack_from(hello, len(MAGIC))
    return epoch, peer_epoch


def decode_token(payload: bytes) -> int:
    """Of `PING` and `PONG`."""
    (token,) = _TOKEN.unpack(payload)
    return int(token)


def decode_credit(payload: bytes) -> tuple[int, int]:
    """Data bytes and message bytes."""
    data, messages = _CREDIT.unpack(payload)
    return data, messages


class Decoder:
    """Bytes in, frames out.

    A new decoder is unsynchronised: it skips what comes before the first `HELLO` (at most `MAX_SKIP` bytes).
    ``max_message`` bounds a joined message. After a `LinkError` the decoder is of no further use.
    """

    def __init__(self, *, max_message: int) -> None:
        self._buffer = bytearray()
        self._max_message = max_message
        self._synchronised = False
        self._skipped = 0
        self._parts = bytearray()
        self._parts_stream = 0
        self._parts_cost = 0

    @property
    def in_frame(self) -> bool:
        """Whether a frame or a message is unfinished, so that an end here is a cut."""
        return self._synchronised and bool(self._buffer or self._parts_stream)

    def desynchronise(self) -> None:
        """Skip up to the next `HELLO`; what was skipped before counts on."""
        self._synchronised = False

    def feed(self, data: bytes | bytearray) -> None:
        """Take bytes in."""
        self._buffer += data

    def next_frame(self) -> Frame | None:
        """The next whole frame, or None if more bytes are needed. Raises `LinkError` for a violation."""
        if not self._synchronised and not self._find_hello():
            return None
        while (frame := self._take()) is not None:
            if frame.type == PART or self._parts_stream:
                frame = self._join(frame)
                if frame is None:
                    continue
            return frame
        return None

    def _find_hello(self) -> bool:
        """Drop what is before a `HELLO`; tells whether the header and the magic of one are there."""
        buffer, start = self._buffer, 0
        while (at := buffer.find(_HELLO_START, start)) >= 0:
            head = at - _LENGTH.size
            if head >= 0:
                payload = _LENGTH.unpack_from(buffer, head)[0] + _LENGTH.size - HEADER
                if _HELLO.size <= payload <= _MAX_HELLO:
                    self._skip(head)
                    self._synchronised = True
                    return True
            start = at + 1
        self._skip(max(0, len(buffer) - len(_HELLO_START) - _LENGTH.size + 1))
        return False

    def _skip(self, count: int) -> None:
        del self._buffer[:count]
        self._skipped += count
        if self._skipped > MAX_SKIP:
            raise LinkError(f"no HELLO among the first {MAX_SKIP >> 20} MiB")

    def _take(self) -> Frame | None:
        buffer = self._buffer
        if len(buffer) < HEADER:
            return None
        length, kind, stream = _HEADER.unpack_from(buffer)
        low, high = _PAYLOAD_RANGE.get(kind, (1, 0))
        size = length + _LENGTH.size - HEADER
        if not low <= size <= high:
            raise LinkError(f"frame of type {kind} with a length of {length}")
        if (stream == 0) != (kind in _OF_LINK):
            raise LinkError(f"frame of type {kind} for stream {stream}")
        if kind in (OPEN, MESSAGE) and size > self._max_message:
            raise LinkError(f"message longer than {self._max_message} bytes")
        end = HEADER + size
        if len(buffer) < end:
            return None
        with memoryview(buffer) as view:
            payload = bytes(view[HEADER:end])
        del buffer[:end]  # moves an offset, not the bytes
        return Frame(kind, stream, payload, end)

    def _join(self, frame: Frame) -> Frame | None:
        """Add to the unfinished message; gives it once it is whole."""
        if frame.type not in (PART, OPEN, MESSAGE) or self._parts_stream not in (0, frame.stream):
            raise LinkError(f"frame of type {frame.type} inside a message in parts")
        self._parts += frame.payload
        self._parts_cost += frame.cost
        self._parts_stream = frame.stream
        if len(self._parts) > self._max_message:
            raise LinkError(f"message longer than {self._max_message} bytes")
        if frame.type == PART:
            return None
        joined = Frame(frame.type, frame.stream, bytes(self._parts), self._parts_cost)
        self._parts, self._parts_stream, self._parts_cost = bytearray(), 0, 0
        return joined
