"""Writing the merged image as a tar archive, in the forms that ``sqfstar`` reads right.

Long names are written GNU's way, attributes and large ids POSIX's: sqfstar 4.5.1 takes a leading ``/`` or ``../`` off
a pax ``linkpath``, so a long symbolic link would lead elsewhere.
"""

from __future__ import annotations

from iii_registry_oci.layers.entry import Entry, Kind

BLOCK = 512
END = bytes(2 * BLOCK)
_FIELD = 100
_OCTAL_7 = 0o7777777
_FLAGS = {Kind.FILE: b"0", Kind.HARDLINK: b"1", Kind.SYMLINK: b"2", Kind.DIRECTORY: b"5"}


def header(path: bytes, entry: Entry) -> bytes:
    """The header blocks of ``entry`` under the name ``path``; a file's data and `padding` follow."""
    blocks = b""
    if len(path) > _FIELD:
        blocks += _extension(b"L", path + b"\0")
    if len(entry.link) > _FIELD:
        blocks += _extension(b"K", entry.link + b"\0")
    records: list[tuple[bytes, bytes]] = [(b"SCHILY.xattr." + name, value) for name, value in entry.xattrs]
    for key, value in ((b"uid", entry.uid), (b"gid", entry.gid)):
        if value > _OCTAL_7:
            records.append((key, b"%d" % value))
    if records:
        blocks += _extension(b"x", b"".join(_record(key, value) for key, value in records))
    return blocks + _block(path, entry, _FLAGS[entry.kind])


def hard_link(path: bytes, target: bytes) -> bytes:
    """The header of one more name for the file that was written as ``target``."""
    return header(path, Entry(Kind.HARDLINK, path, 0o644, 0, 0, 0, target, 0, 0, ()))


def padding(size: int) -> bytes:
    """What follows ``size`` bytes of data."""
    return bytes(-size % BLOCK)


def _extension(flag: bytes, data: bytes) -> bytes:
    entry = Entry(Kind.FILE, b"", 0o644, 0, 0, 0, b"", 0, len(data), ())
    return _block(b"././@LongLink", entry, flag) + data + padding(len(data))


def _record(key: bytes, value: bytes) -> bytes:
    """``"<length> <key>=<value>\\n"``, where the length counts its own digits."""
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 1
    while len(b"%d" % length) + len(body) != length:
        length = len(b"%d" % length) + len(body)
    return b"%d" % length + body


def _block(path: bytes, entry: Entry, flag: bytes) -> bytes:
    block = b"%-100s%07o\0%07o\0%07o\0%011o\0%011o\0        %c%-100sustar\x0000" % (
        path[:_FIELD].ljust(_FIELD, b"\0"),
        entry.mode,
        min(entry.uid, _OCTAL_7),
        min(entry.gid, _OCTAL_7),
        entry.size,
        entry.mtime,
        flag,
        entry.link[:_FIELD].ljust(_FIELD, b"\0"),
    )
    block = block.ljust(BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
