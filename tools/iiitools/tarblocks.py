"""Tar headers made by hand, right or wrong: what `tarfile` would not write.

>>> archive = header(b"a", data=b"1") + END
"""

from __future__ import annotations

from collections.abc import Mapping

BLOCK = 512
END = bytes(2 * BLOCK)
_PLACES = {
    "mode": (100, 8),
    "uid": (108, 8),
    "gid": (116, 8),
    "mtime": (136, 12),
    "link": (157, 100),
    "prefix": (345, 155),
}


def header(
    name: bytes = b"a", flag: bytes = b"0", data: bytes = b"", size: bytes | None = None, **fields: bytes
) -> bytes:
    """A ustar entry with its data and a right checksum; mode, uid, gid, mtime, link and prefix are put as they are."""
    block = bytearray(BLOCK)
    block[0 : len(name)] = name
    block[257:265] = b"ustar\x0000"
    block[124:136] = size or b"%011o\0" % len(data)
    block[156:157] = flag
    for field, value in fields.items():
        at, length = _PLACES[field]
        block[at : at + length] = value.ljust(length, b"\0")
    return sealed(block) + data + bytes(-len(data) % BLOCK)


def sealed(block: bytes | bytearray) -> bytes:
    """A header block with the checksum that it should have."""
    block = bytearray(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(records: Mapping[bytes, bytes] | bytes, flag: bytes = b"x") -> bytes:
    """An extended header (``x``) or a global one (``g``); bytes are taken as its data, right or wrong."""
    if isinstance(records, bytes):
        return header(b"pax", flag, records)
    data = b""
    for key, value in records.items():
        body = b" " + key + b"=" + value + b"\n"
        length = next(n for n in range(len(body), len(body) + 12) if len(str(n)) + len(body) == n)
        data += str(length).encode() + body
    return header(b"pax", flag, data)


def long_name(name: bytes, flag: bytes = b"L") -> bytes:
    """GNU's header for a long name (``L``) or link target (``K``)."""
    return header(b"././@LongLink", flag, name + b"\0")
