"""The host's payloads of the agent protocol, taken apart for the guest agent of `MemoryBackend`."""

from __future__ import annotations

import struct
from typing import TypeAlias

from iii_core.sandbox.agent_wire import Tag, TerminalSize

Fields: TypeAlias = dict[int, list[bytes]]
"""Values by tag."""


def decode(payload: bytes) -> tuple[int, Fields]:
    """Kind and fields of a payload of the host's (``u16 tag | u32 length | value``)."""
    fields: Fields = {}
    at = 1
    while at < len(payload):
        tag, size = struct.unpack_from("<HI", payload, at)
        at += 6
        fields.setdefault(tag, []).append(payload[at : at + size])
        at += size
    return payload[0], fields


def number_in(fields: Fields, tag: Tag, default: int) -> int:
    """The number of that tag; of several the last."""
    return int.from_bytes(fields[tag][-1], "little") if tag in fields else default


def size_in(fields: Fields) -> TerminalSize | None:
    """The terminal that is asked for, if one is."""
    if Tag.ROWS not in fields:
        return None
    return TerminalSize(rows=number_in(fields, Tag.ROWS, 24), cols=number_in(fields, Tag.COLS, 80))
