"""Limits that hold before a message is in memory.

wsproto hands out a message in pieces and trio-websocket gathers them in a list. It counts *characters* of text, so that
64 Mi of them may be 256 MiB, and it counts no pieces, so that a client may send empty fragments for ever. `FrameGuard`
walks over the frame headers of the incoming bytes (RFC 6455 §5.2) ahead of wsproto and refuses on the header alone what
is too long. It changes nothing and judges nothing else: masks, opcodes and UTF-8 are wsproto's to check.
"""

from __future__ import annotations

MAX_PIECES = 2**18
"""Fragments and reads that one message may arrive in; 64 MiB in TCP segments of an ordinary network take 46 000."""

MAX_FRAGMENTS = 2**14
"""Fragments of one message; those of 64 MiB may be as short as 4 KiB, which is less than anybody cuts."""
UNBOUNDED = 2**62

_CLOSE = 0x8
_CONTROL = 0x8
_FIN = 0x80


class MessageTooLarge(Exception):
    """A message is over the limit."""


class FrameGuard:
    """Follows one direction of a connection from the first frame on.

    Args:
        max_message: most bytes of one message's payload.
        max_pieces: most pieces that one message may arrive in.
        max_fragments: most fragments that its sender may cut it into.
    """

    def __init__(self, max_message: int, max_pieces: int = MAX_PIECES, max_fragments: int = MAX_FRAGMENTS) -> None:
        self._max_message = max_message
        self._max_pieces = max_pieces
        self._max_fragments = max_fragments
        self._header = bytearray()
        self._payload_left = 0
        self._in_message = False
        self._last_frame = False
        self._size = 0
        self._pieces = 0
        self._fragments = 0
        self._begun = 0
        self.close_seen = False

    def feed(self, data: bytes | memoryview, start: int = 0, frames: int = UNBOUNDED) -> int:
        """Look at the next bytes of the stream, from ``start`` on; gives the position of the first byte not looked at.

        That is the end of the data, or of the last of so many ``frames`` that begin in it.

        Raises:
            MessageTooLarge: the message that these bytes belong to is over a limit.
        """
        position, self._begun = start, 0
        if self._in_message and position < len(data):
            self._count_piece()
        while position < len(data):
            if self.close_seen:
                return len(data)
            if self._begun >= frames and not self._payload_left:
                return position
            if self._payload_left:
                step = min(self._payload_left, len(data) - position)
                self._payload_left -= step
                position += step
            else:
                position = self._read_header(data, position)
            if self._last_frame and not self._payload_left:
                self._in_message = self._last_frame = False
                self._size = self._pieces = self._fragments = 0
        return position

    def _read_header(self, data: bytes | memoryview, position: int) -> int:
        """Take header bytes until they are complete or the data ends; gives the new position."""
        header = self._header
        while len(header) < _header_length(header):
            if position == len(data):
                return position
            header.append(data[position])
            position += 1
        self._begin_frame(header)
        header.clear()
        return position

    def _begin_frame(self, header: bytearray) -> None:
        length = header[1] & 0x7F
        if length > 125:
            length = int.from_bytes(header[2:4] if length == 126 else header[2:10], "big")
        self._payload_left = length
        self._begun += 1
        opcode = header[0] & 0x0F
        if opcode & _CONTROL:
            # Control frames may stand between the fragments of a message and are no part of it.
            self.close_seen = opcode == _CLOSE
            return
        self._in_message = True
        self._size += length
        if self._size > self._max_message:
            raise MessageTooLarge(f"a message is longer than {self._max_message} bytes")
        self._count_piece()
        self._fragments += 1
        if self._fragments > self._max_fragments:
            raise MessageTooLarge(f"a message is in more than {self._max_fragments} fragments")
        self._last_frame = bool(header[0] & _FIN)

    def _count_piece(self) -> None:
        self._pieces += 1
        if self._pieces > self._max_pieces:
            raise MessageTooLarge(f"a message is in more than {self._max_pieces} pieces")


def _header_length(header: bytearray) -> int:
    """Bytes that the frame header has, as far as its first two bytes tell."""
    if len(header) < 2:
        return 2
    length = header[1] & 0x7F
    extended = {126: 2, 127: 8}.get(length, 0)
    masked = 4 if header[1] & 0x80 else 0
    return 2 + extended + masked
