"""POSIX pax records (POSIX.1-2017, "pax Extended Header"): ``"<length> <key>=<value>\\n"`` one after the other."""

from __future__ import annotations

import re
from collections.abc import Mapping

_DECIMAL = re.compile(rb"[0-9]{1,20}\Z")
_TIME = re.compile(rb"(-?[0-9]{1,20})(?:\.[0-9]*)?\Z")
_XATTR = b"SCHILY.xattr."
_RECORDS_MAX = 256  # of one header; tools write fewer than ten

# Of extended attributes those are kept that mean something to a worker. ``trusted.overlay.*`` and ``user.overlay.*``
# would direct the overlay file system that the image becomes part of; the rest of ``trusted`` and ``security`` (SELinux
# labels, IMA hashes) belongs to the machine that built the image.
_KEPT = (b"user.", b"security.capability")
_DROPPED = (b"user.overlay.", b"user.fuseoverlayfs.", b"user.rootlesscontainers", b"user.containers.")


class Malformed(ValueError):
    """A header that breaks the rules; the text says how, as a predicate."""


def parse(data: bytes) -> dict[bytes, bytes]:
    """The records of an extended header. Of two records with one key the later counts. Raises `Malformed`."""
    records: dict[bytes, bytes] = {}
    at = count = 0
    while at < len(data):
        count += 1
        if count > _RECORDS_MAX:
            raise Malformed(f"has an extended header of more than {_RECORDS_MAX} records")
        space = data.find(b" ", at, at + 21)
        if space < 0 or not _DECIMAL.match(data[at:space]):
            raise Malformed("has an extended header without a length")
        end = at + int(data[at:space])
        if not space < end <= len(data) or data[end - 1 : end] != b"\n":
            raise Malformed("has an extended header of a wrong length")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or not key or b"\0" in key:
            raise Malformed("has an extended header without a key")
        if key.startswith(b"GNU.sparse"):
            raise Malformed("is a sparse file, which layers do not hold")
        records[key] = value
        at = end
    if b"\0" in records.get(b"path", b"") or b"\0" in records.get(b"linkpath", b""):
        raise Malformed("has a name that holds NUL")
    return records


def size(records: Mapping[bytes, bytes], plain: int) -> int:
    """An entry's size, where ``plain`` is the one of its ustar header.

    A disagreement is refused: tools that read one and tools that read the other would see different archives.
    """
    value = records.get(b"size")
    if value is None:
        return plain
    if not _DECIMAL.match(value):
        raise Malformed("has no number for its size")
    if plain not in (0, int(value)):
        raise Malformed(f"has two sizes, {plain} and {int(value)}")
    return int(value)


def number(records: Mapping[bytes, bytes], key: bytes, plain: int) -> int:
    """The record ``key`` as a number, else ``plain``."""
    value = records.get(key)
    if value is None:
        return plain
    if not _DECIMAL.match(value):
        raise Malformed(f"has no number for its {key.decode()}")
    return int(value)


def time(records: Mapping[bytes, bytes], plain: int) -> int:
    """The modification time in whole seconds, rounded down."""
    value = records.get(b"mtime")
    if value is None:
        return plain
    found = _TIME.match(value)
    if not found:
        raise Malformed("has no number for its mtime")
    return int(found[1]) - (value.startswith(b"-") and b"." in value)


def attributes(records: Mapping[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    """The extended attributes that are kept."""
    named = ((key.removeprefix(_XATTR), value) for key, value in records.items() if key.startswith(_XATTR))
    kept = [(key, value) for key, value in named if key.startswith(_KEPT) and not key.startswith(_DROPPED)]
    if sum(len(key) + len(value) for key, value in kept) > 65536 or any(len(key) > 255 for key, _ in kept):
        raise Malformed("has more than 64 KiB of extended attributes")
    return tuple(kept)
