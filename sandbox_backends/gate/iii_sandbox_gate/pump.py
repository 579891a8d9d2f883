"""Carries Ethernet frames between QEMU and a gate's card.

QEMU's ``-netdev stream`` writes each frame behind its length, four bytes in network order (qemu(1); ``net/stream.c``).
What comes from there is a guest's, or of a QEMU that a guest has taken over: it is cut into frames and handed to the
kernel, which filters it, and nothing else is done with it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import Final

MAX_FRAME: Final = 65536 + 64
_LENGTH: Final = struct.Struct("!I")
_PIECE: Final = 256 * 1024
_FRAMES_AT_ONCE: Final = 64


class StreamBroken(Exception):
    """The stream has ended, or what came is not of QEMU's format."""


class Pump:
    """Neither way waits for the other: what a full card refuses is lost, as on a wire.

    Args:
        tap: the card; not blocking.
        stream: QEMU's end; made not blocking.
    """

    def __init__(self, tap: int, stream: socket.socket) -> None:
        stream.setblocking(False)
        self.stream = stream
        self._tap = tap
        self._arrived = bytearray()
        self._waiting = bytearray()

    @property
    def is_full(self) -> bool:
        """Whether QEMU has not taken what came from the card: `from_card` must wait for `flush`."""
        return bool(self._waiting)

    def from_stream(self) -> None:
        """Take what QEMU sent. Raises `StreamBroken`."""
        try:
            data = self.stream.recv(_PIECE)
        except BlockingIOError:
            return
        except OSError as error:
            raise StreamBroken from error
        if not data:
            raise StreamBroken
        self._arrived += data
        at = 0
        while len(self._arrived) - at >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._arrived, at)
            if not 0 < size <= MAX_FRAME:
                raise StreamBroken(f"a frame of {size} bytes")
            end = at + _LENGTH.size + size
            if end > len(self._arrived):
                break
            with contextlib.suppress(OSError):  # too short for a frame, or the card is full
                os.write(self._tap, memoryview(self._arrived)[at + _LENGTH.size : end])
            at = end
        del self._arrived[:at]

    def from_card(self) -> None:
        """Send on what is for the guest. Raises `StreamBroken`, or ``OSError`` if the card is gone."""
        for _ in range(_FRAMES_AT_ONCE):
            try:
                frame = os.read(self._tap, MAX_FRAME)
            except BlockingIOError:
                break
            self._waiting += _LENGTH.pack(len(frame)) + frame
        self.flush()

    def flush(self) -> None:
        """Send as much of what waits as QEMU takes. Raises `StreamBroken`."""
        try:
            while self._waiting:
                del self._waiting[: self.stream.send(self._waiting)]
        except BlockingIOError:
            pass
        except OSError as error:
            raise StreamBroken from error
