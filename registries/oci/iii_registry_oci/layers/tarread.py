"""A strict reader of tar headers: ustar, POSIX pax, GNU long names, and the old headers without a magic.

Sources: POSIX.1-2017 ``pax`` ("ustar Interchange Format", "pax Header Block"), GNU tar manual ("Basic Tar Format"), and
what Go's ``archive/tar`` does, which is what other OCI tools read layers with. Python's `tarfile` is far too lenient
for hostile input and too slow for an image's thousands of entries.

`count_headers` is for refusing bombs before anything is kept of them; `read_entries` is what decides.
"""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache
from typing import TYPE_CHECKING

from iii_core.errors import ImageUnsafe
from iii_registry_oci.layers import pax
from iii_registry_oci.layers.entry import Entry, Kind, unsafe_entry
from iii_registry_oci.layers.pax import Malformed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iii_registry_oci.layers.blob import Budget
    from iii_registry_oci.layers.limits import Limits
    from iii_registry_oci.layers.spool import ReaderAt

BLOCK = 512
_ZEROS = bytes(BLOCK)
_MTIME_MAX = 2**32 - 1
_ID_MAX = 2**32 - 2  # 2³²-1 means "nobody in particular" to chown(2)

_USTAR = b"ustar\0"
_FIELDS = struct.Struct("100s24s12s12s9x100s6s82x155s12x")  # name, mode to gid, size, mtime, link, magic, prefix
_ODD = frozenset((b"", b".", b".."))
_KINDS = {
    ord(b"0"): Kind.FILE,
    ord(b"\0"): Kind.FILE,
    ord(b"7"): Kind.FILE,  # "contiguous", which nobody ever was
    ord(b"1"): Kind.HARDLINK,
    ord(b"2"): Kind.SYMLINK,
    ord(b"3"): Kind.SPECIAL,
    ord(b"4"): Kind.SPECIAL,
    ord(b"5"): Kind.DIRECTORY,
    ord(b"6"): Kind.SPECIAL,
}
_EXTENSIONS = b"xgLK"
_WITH_DATA = _EXTENSIONS + b"07\0"
_NO_SIZE = b"00000000000\0"
_WINDOW = 64 * 1024
_GLOBALS_MAX = 64
_PAX_FREE = 512
_PAX_ENTRY = 128  # bytes of an extended header beyond `_PAX_FREE` that count as one more entry: they take time to read


def is_header(block: bytes) -> bool:
    """Whether a block could be an archive's first: a header with a right checksum, or the end of an empty archive."""
    if len(block) < BLOCK or block == _ZEROS:
        return block == _ZEROS
    try:
        _check_sum(block)
    except Malformed:
        return False
    return True


def count_headers(spool: ReaderAt, most: int) -> int:
    """How many headers an archive has, extended ones included; counting ends above ``most``.

    It takes headers at their word and ends at the first that it cannot read: a quick look, that nothing but refusing an
    archive may depend on.
    """
    window, start, at, count = b"", 0, 0, 0
    while count <= most and at < spool.size:
        header = window[at - start : at - start + BLOCK]
        if len(header) < BLOCK:
            window, start = spool.read(at, _WINDOW), at
            header = window[:BLOCK]
        if header == _ZEROS:
            break
        count += 1
        at += BLOCK
        if header[124:136] != _NO_SIZE and header[156] in _WITH_DATA:
            try:
                at += _padded(_number(header[124:136], "size"))
            except Malformed:
                break
    return count


def read_entries(spool: ReaderAt, budget: Budget, label: str) -> Iterator[Entry]:
    """The entries of the archive, in order. ``label`` names it in errors.

    Raises:
        ImageUnsafe: a header is malformed, there are more than the budget allows, or an entry asks for what a layer
            must not hold.
    """
    extension: Extension | None = None
    global_records: dict[bytes, bytes] = {}
    window, start, at = b"", 0, 0
    while True:
        header = window[at - start : at - start + BLOCK]
        if len(header) < BLOCK:
            window, start = spool.read(at, _WINDOW), at
            header = window[:BLOCK]
        if header == _ZEROS or len(header) < BLOCK:
            _check_end(header, spool.read(at + BLOCK, BLOCK), label)
            break
        at += BLOCK
        budget.spend_entries()
        try:
            _check_sum(header)
            if header[156] in _EXTENSIONS:
                extension = extension or Extension(global_records)
                at = extension.take(header, spool, at, budget)
                continue
            entry = _entry(header, extension, at, budget.limits)
        except Malformed as error:
            name = (extension and extension.long_name) or _text(header[0:100])
            raise unsafe_entry(label, name, str(error)) from None
        yield entry
        extension = Extension(global_records) if global_records else None
        at += _padded(entry.size)
        if at > spool.size:
            raise _cut(label)
    if extension and extension.pending:
        raise ImageUnsafe(f"{label}: the archive ends after an extended header")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _check_end(header: bytes, second: bytes, label: str) -> None:
    """An archive ends with two blocks of zeros, or with the file (as Go takes it)."""
    if header and len(header) < BLOCK:
        raise _cut(label)
    if header and second not in (b"", _ZEROS):
        raise ImageUnsafe(f"{label}: the archive has a block of zeros in its midst")


def _cut(label: str) -> ImageUnsafe:
    return ImageUnsafe(f"{label}: the archive ends in the middle of an entry")


class Extension:
    """What the extended headers before an entry say about it; ``global_records`` are those for all that follow."""

    def __init__(self, global_records: dict[bytes, bytes]) -> None:
        self._globals = global_records
        self._records: dict[bytes, bytes] = {}
        self.name: bytes | None = None
        self.link: bytes | None = None
        self.pending = False

    @property
    def long_name(self) -> bytes | None:
        """The name that these headers give the entry; pax decides over GNU."""
        return self._records.get(b"path") or self._globals.get(b"path") or self.name

    @property
    def records(self) -> dict[bytes, bytes]:
        """The pax records, not to be changed; an entry's own decide over global ones."""
        return {**self._globals, **self._records} if self._globals and self._records else self._records or self._globals

    def take(self, header: bytes, spool: ReaderAt, at: int, budget: Budget) -> int:
        """One extended header, with its data at ``at``; each kind may come once for an entry. Gives where it ends."""
        size = _number(header[124:136], "size")
        if size > budget.limits.pax:
            raise Malformed(f"has an extended header of {size} bytes (at most {budget.limits.pax})")
        budget.spend_entries(max(0, size - _PAX_FREE) // _PAX_ENTRY)
        end = at + _padded(size)
        if end > spool.size:
            raise Malformed("has an extended header that ends too early")
        data = spool.read(at, size)
        flag = header[156:157]
        if flag == b"g":
            self._take_globals(pax.parse(data))
            return end
        self.pending = True
        if flag == b"x":
            if self._records:
                raise Malformed("has two extended headers")
            self._records = pax.parse(data)
        elif flag == b"L":
            self.name = _long(data, self.name)
        else:
            self.link = _long(data, self.link)
        return end

    def _take_globals(self, records: dict[bytes, bytes]) -> None:
        if b"size" in records:
            raise Malformed("is a global header that sets sizes")
        if len(self._globals) + len(records) > _GLOBALS_MAX:
            raise Malformed("is one of too many global headers")
        self._globals.update(records)


def _long(data: bytes, before: bytes | None) -> bytes:
    if before is not None:
        raise Malformed("has two long names")
    value = data.removesuffix(b"\0")
    if b"\0" in value.rstrip(b"\0"):
        raise Malformed("has a name that holds NUL")
    return value.rstrip(b"\0")


def _entry(header: bytes, extension: Extension | None, offset: int, limits: Limits) -> Entry:
    kind = _KINDS.get(header[156])
    if kind is None:
        raise Malformed(f"is of the unsupported type {header[156:157]!r}")
    name, owner, size_field, mtime_field, link, magic, prefix = _FIELDS.unpack(header)
    size = _number(size_field, "size")
    name = name.partition(b"\0")[0]
    if magic == _USTAR and prefix[0]:
        name = _text(prefix) + b"/" + name  # POSIX's prefix; GNU's header uses that field for other things
    mode, uid, gid = _owner(owner)
    mtime = _number(mtime_field, "mtime", signed=True)
    link = link.partition(b"\0")[0]
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    if extension:
        records = extension.records
        size = pax.size(records, size)
        name = extension.long_name or name
        link = records.get(b"linkpath") or extension.link or link
        uid, gid = pax.number(records, b"uid", uid), pax.number(records, b"gid", gid)
        mtime = pax.time(records, mtime)
        xattrs = pax.attributes(records)
    if uid > _ID_MAX or gid > _ID_MAX:
        raise Malformed(f"has the uid {uid} or gid {gid} (at most {_ID_MAX})")
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
    return Entry(kind, path, mode, uid, gid, min(max(mtime, 0), _MTIME_MAX), link, offset, size, xattrs)


def clean_path(name: bytes, limits: Limits) -> bytes:
    """``name`` without ``.`` and repeated slashes. Raises `Malformed` for what must not be in a layer."""
    if len(name) > limits.path:
        raise Malformed(f"has a name of {len(name)} bytes (at most {limits.path})")
    if name.startswith(b"/"):
        raise Malformed("has an absolute name")
    if b"\0" in name:
        raise Malformed("has a name that holds NUL")
    parts = name.split(b"/")
    if not _ODD.isdisjoint(parts):
        if b".." in parts:
            raise Malformed("climbs out of the image with '..'")
        parts = [part for part in parts if part and part != b"."]
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
    found = _sum(header[:256]) + _sum(header[256:])
    expected = _expected_sum(header[148:156])
    if found != expected and found != expected + 256 * sum(byte > 127 for byte in header[:148] + header[156:]):
        raise Malformed("has a wrong checksum")


@lru_cache(maxsize=4096)  # sums are alike as names are
def _expected_sum(field: bytes) -> int:
    """What all bytes of a header sum up to, by its checksum."""
    return _parse_number(field, "checksum") + sum(field) - 8 * 0x20


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
