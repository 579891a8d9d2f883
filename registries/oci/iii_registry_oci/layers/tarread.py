"""A strict reader of tar headers: ustar, POSIX pax, GNU long names, and the old headers without a magic.

Sources: POSIX.1-2017 ``pax`` ("ustar Interchange Format", "pax Header Block"), GNU tar manual ("Basic Tar Format"), and
what Go's ``archive/tar`` does, which is what other OCI tools read layers with. Python's `tarfile` is far too lenient
for hostile input and too slow for an image's thousands of entries.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import TYPE_CHECKING

from iii_core.errors import ImageUnsafe
from iii_registry_oci.layers import pax
from iii_registry_oci.layers.entry import Entry, Kind, unsafe_entry
from iii_registry_oci.layers.pax import Malformed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iii_registry_oci.layers.blob import Budget, LayerReader
    from iii_registry_oci.layers.limits import Limits

BLOCK = 512
_ZEROS = bytes(BLOCK)
_MTIME_MAX = 2**32 - 1
_ID_MAX = 2**32 - 2  # 2³²-1 means "nobody in particular" to chown(2)

_KINDS = {
    b"0": Kind.FILE,
    b"\0": Kind.FILE,
    b"7": Kind.FILE,  # "contiguous", which nobody ever was
    b"1": Kind.HARDLINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.SPECIAL,
    b"4": Kind.SPECIAL,
    b"5": Kind.DIRECTORY,
    b"6": Kind.SPECIAL,
}
_EXTENSIONS = b"xgLK"


def read_entries(reader: LayerReader, budget: Budget, label: str) -> Iterator[Entry]:
    """The entries of the archive, in order. ``label`` names the layer in errors.

    The reader stands at an entry's data when it is given, and must stand there when the next one is asked for.

    Raises:
        ImageUnsafe: a header is malformed, or asks for what a layer must not hold.
    """
    extension = _Extension()
    global_records: dict[bytes, bytes] = {}
    while header := _next_header(reader, label):
        budget.spend_entry()
        try:
            _check_sum(header)
            flag = header[156:157]
            if flag in _EXTENSIONS:
                size = _number(header[124:136], "size")
                extension.take(flag, _extension_data(reader, size, budget.limits), global_records)
                continue
            entry = _entry(header, extension, global_records, reader.position, budget.limits)
        except Malformed as error:
            raise unsafe_entry(label, extension.long_name or _text(header[0:100]), str(error)) from None
        if extension.pending:
            extension = _Extension()
        yield entry
        if entry.size and not reader.skip(-(-entry.size // BLOCK) * BLOCK):
            raise _cut(label)
    if extension.pending:
        raise ImageUnsafe(f"{label}: the archive ends after an extended header")


def _next_header(reader: LayerReader, label: str) -> bytes | None:
    """The next header block; None at the end: two blocks of zeros, or the end of the file (as Go takes it)."""
    header = reader.read(BLOCK)
    if not header:
        return None
    if len(header) < BLOCK:
        raise _cut(label)
    if header != _ZEROS:
        return header
    second = reader.read(BLOCK)
    if second in (b"", _ZEROS):
        return None
    raise ImageUnsafe(f"{label}: the archive has a block of zeros in its midst")


def _cut(label: str) -> ImageUnsafe:
    return ImageUnsafe(f"{label}: the archive ends in the middle of an entry")


def _extension_data(reader: LayerReader, size: int, limits: Limits) -> bytes:
    if size > limits.pax:
        raise Malformed(f"has an extended header of {size} bytes (at most {limits.pax})")
    data = reader.read(size)
    if len(data) < size or not reader.skip(-size % BLOCK):
        raise Malformed("has an extended header that ends too early")
    return data


class _Extension:
    """What the extended headers before an entry say about it."""

    def __init__(self) -> None:
        self.name: bytes | None = None
        self.link: bytes | None = None
        self.records: dict[bytes, bytes] = {}
        self.pending = False

    @property
    def long_name(self) -> bytes | None:
        """The name that these headers give the entry; pax decides over GNU."""
        return self.records.get(b"path") or self.name

    def take(self, flag: bytes, data: bytes, global_records: dict[bytes, bytes]) -> None:
        """One extended header; each kind may come once for an entry."""
        if flag == b"g":
            records = pax.parse(data)
            if b"size" in records or any(key.startswith(b"GNU.sparse") for key in records):
                raise Malformed("is a global header that sets sizes")
            if len(global_records) + len(records) > 1000:
                raise Malformed("is one of too many global headers")
            global_records.update(records)
            return
        self.pending = True
        if flag == b"x":
            if self.records:
                raise Malformed("has two extended headers")
            self.records = pax.parse(data)
        elif flag == b"L":
            self.name = _long(data, self.name)
        else:
            self.link = _long(data, self.link)


def _long(data: bytes, before: bytes | None) -> bytes:
    if before is not None:
        raise Malformed("has two long names")
    value = data.removesuffix(b"\0")
    if b"\0" in value.rstrip(b"\0"):
        raise Malformed("has a name that holds NUL")
    return value.rstrip(b"\0")


def _entry(
    header: bytes, extension: _Extension, global_records: dict[bytes, bytes], offset: int, limits: Limits
) -> Entry:
    kind = _KINDS.get(header[156:157])
    if kind is None:
        raise Malformed(f"is of the unsupported type {header[156:157]!r}")
    records = {**global_records, **extension.records} if global_records else extension.records
    size = _number(header[124:136], "size")
    if records:
        size = pax.size(records, size)
    name = records.get(b"path") or extension.name or _name(header)
    link = records.get(b"linkpath") or extension.link or _text(header[157:257])
    if kind is Kind.FILE and name.endswith(b"/"):
        kind = Kind.DIRECTORY  # as the oldest tars wrote directories
    if kind is not Kind.FILE:
        size = 0  # these never have data, whatever their header says (as Go takes it)
    elif size > limits.file:
        raise Malformed(f"has {size} bytes (at most {limits.file})")
    path = clean_path(name, limits)
    if kind is Kind.HARDLINK:
        link = clean_path(link.lstrip(b"/"), limits)
    elif kind is Kind.SYMLINK:
        _check_target(link, limits)
    else:
        link = b""
    mode, uid, gid = _owner(header[100:124])
    mtime = _number(header[136:148], "mtime", signed=True)
    if records or uid > _ID_MAX or gid > _ID_MAX:
        uid, gid = pax.number(records, b"uid", uid, _ID_MAX), pax.number(records, b"gid", gid, _ID_MAX)
        mtime = pax.time(records, mtime)
    mtime = min(max(mtime, 0), _MTIME_MAX)
    return Entry(kind, path, mode, uid, gid, mtime, link, offset, size, pax.attributes(records) if records else ())


def _name(header: bytes) -> bytes:
    """The name with POSIX's prefix; GNU's header uses that field for other things."""
    name = _text(header[0:100])
    if header[257:263] != b"ustar\0":
        return name
    prefix = _text(header[345:500])
    return prefix + b"/" + name if prefix else name


def clean_path(name: bytes, limits: Limits) -> bytes:
    """``name`` without ``.`` and repeated slashes. Raises `Malformed` for what must not be in a layer."""
    if len(name) > limits.path:
        raise Malformed(f"has a name of {len(name)} bytes (at most {limits.path})")
    if name.startswith(b"/"):
        raise Malformed("has an absolute name")
    if b"\0" in name:
        raise Malformed("has a name that holds NUL")
    parts = [part for part in name.split(b"/") if part and part != b"."]
    if b".." in parts:
        raise Malformed("climbs out of the image with '..'")
    if len(parts) > limits.depth:
        raise Malformed(f"is {len(parts)} levels deep (at most {limits.depth})")
    if len(name) > limits.name and any(len(part) > limits.name for part in parts):
        raise Malformed(f"has a part of its name longer than {limits.name} bytes")
    return b"/".join(parts)


def _check_target(link: bytes, limits: Limits) -> None:
    if not link or b"\0" in link:
        raise Malformed("is a symbolic link to nothing")
    if len(link) > limits.path:
        raise Malformed(f"is a symbolic link of {len(link)} bytes (at most {limits.path})")


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _check_sum(header: bytes) -> None:
    """POSIX sums unsigned bytes with the sum's own field as spaces; some old tars summed signed ones."""
    field = header[148:156]
    unsigned = _sum(header[:256]) + _sum(header[256:]) - _sum(field) + 8 * 0x20
    expected = _parse_number(field, "checksum")
    if expected != unsigned and expected != unsigned - 256 * sum(byte > 127 for byte in header[:148] + header[156:]):
        raise Malformed("has a wrong checksum")


def _sum(data: bytes) -> int:
    """The sum of at most 256 bytes, ten times as fast as `sum`: the low half of Adler-32 is 1 + the sum mod 65521."""
    return (zlib.adler32(data) & 0xFFFF) - 1


@lru_cache(maxsize=1024)  # most entries of a layer have the owners and modes of others
def _owner(fields: bytes) -> tuple[int, int, int]:
    """Mode, uid and gid."""
    return (
        _parse_number(fields[0:8], "mode") & 0o7777,
        _parse_number(fields[8:16], "uid"),
        _parse_number(fields[16:24], "gid"),
    )


@lru_cache(maxsize=4096)  # times and sizes repeat as well
def _number(field: bytes, what: str, *, signed: bool = False) -> int:
    return _parse_number(field, what, signed=signed)


def _parse_number(field: bytes, what: str, *, signed: bool = False) -> int:
    """A numeric field: octal digits, or GNU's base 256 for what does not fit."""
    if field[0] & 0x80:
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        if field[0] & 0x40:  # two's complement
            value -= 1 << (8 * len(field) - 1)
    else:
        digits = field.strip(b" \0")
        try:
            value = int(digits, 8) if digits else 0
        except ValueError:
            raise Malformed(f"has no number for its {what}") from None
        if not digits.isdigit() and digits:
            raise Malformed(f"has no number for its {what}")
    if value < 0 and not signed:
        raise Malformed(f"has a negative {what}")
    return value
