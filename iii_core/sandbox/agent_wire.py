"""The payloads of the agent protocol: kinds, tags and their TLV coding (``docs/protocol/agent.md``). Pure."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

from iii_core.errors import LinkError

if TYPE_CHECKING:
    from collections.abc import Iterable

VERSION: Final = 1
_HEADER: Final = 6
_MUST_UNDERSTAND: Final = 0x8000


class Kind(IntEnum):
    """First byte of every payload: what a stream is, or what a message says."""

    CONTROL = 1
    PROCESS = 2
    TUNNEL = 3
    STARTED = 16
    SPAWN_ERROR = 17
    EXIT = 18
    SIGNAL = 19
    RESIZE = 20
    READY = 32
    CONNECTION = 33
    POWER_OFF = 34


class Configure(IntEnum):
    """Tags of the payload that opens the control stream."""

    PORT = 1
    HOSTNAME = 2
    DEAD_MAN_MS = 3


class Process(IntEnum):
    """Tags of the payload that opens a process stream."""

    ARG = 1
    ENV = 2
    CWD = 3
    ROWS = 4
    COLS = 5
    UID = 6
    GID = 7
    GROUP = 8
    LINGER_MS = 9
    STDIN = 10


class Tag(IntEnum):
    """Tags of messages."""

    VERSION = 16
    FEATURES = 17
    PID = 18
    LISTEN_ERROR = 19
    CONNECTION_ID = 20
    GRACE_MS = 21
    ERRNO = 22
    TEXT = 23
    CODE = 24
    SIGNAL = 25


def encode(kind: Kind, fields: Iterable[tuple[int, int | str | bytes]] = ()) -> bytes:
    """A payload of ``kind``; integers become u64, text UTF-8 (surrogate escapes keep foreign bytes)."""
    parts = [bytes([kind])]
    for tag, value in fields:
        raw = value.to_bytes(8, "little") if isinstance(value, int) else value
        raw = raw.encode("utf-8", "surrogateescape") if isinstance(raw, str) else raw
        parts += [tag.to_bytes(2, "little"), len(raw).to_bytes(4, "little"), raw]
    return b"".join(parts)


class Fields:
    """The fields of a payload that a guest sent; hostile until read."""

    def __init__(self, payload: bytes) -> None:
        if not payload:
            raise LinkError("the agent sent an empty payload")
        self.kind = payload[0]
        self._values: dict[int, list[bytes]] = {}
        offset = 1
        while offset < len(payload):
            if len(payload) - offset < _HEADER:
                raise LinkError("the agent sent half a field")
            tag = int.from_bytes(payload[offset : offset + 2], "little")
            size = int.from_bytes(payload[offset + 2 : offset + _HEADER], "little")
            offset += _HEADER
            if size > len(payload) - offset:
                raise LinkError("the agent sent a field longer than its payload")
            if tag & _MUST_UNDERSTAND:
                raise LinkError(f"the agent sent field {tag:#x}, which this host must but does not understand")
            self._values.setdefault(tag, []).append(payload[offset : offset + size])
            offset += size

    def number(self, tag: int) -> int | None:
        """The last value of a tag as a number."""
        values = self._values.get(tag)
        if values is None:
            return None
        if len(values[-1]) != 8:
            raise LinkError(f"field {tag} of the agent is no number")
        return int.from_bytes(values[-1], "little")

    def required(self, tag: int) -> int:
        """As `number`, for what must be there."""
        found = self.number(tag)
        if found is None:
            raise LinkError(f"the agent left out field {tag} of message {self.kind}")
        return found

    def texts(self, tag: int) -> list[str]:
        """All values of a tag as text that is safe to show: control characters escaped, at most 512 characters."""
        return [_safe(value) for value in self._values.get(tag, [])]


def _safe(raw: bytes) -> str:
    text = raw[:512].decode(errors="replace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
