"""The archives of copies in and out of sandboxes: ustar with pax records (``docs/protocol/agent.md``, "COPY").

Two halves without I/O of their own but for files: `pack` makes an archive of something on this machine, `Unpacker`
takes one that a guest made. **A guest's archive is hostile**: names that lead elsewhere, links to write through,
devices, set-user-id bits, sizes that lie, headers without end. What is not plainly a file, a folder or a harmless link
is refused.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from iii_core.errors import SandboxError

BLOCK: Final = 512
PIECE: Final = 64 << 10
MAX_RECORDS: Final = 16 << 10
MAX_PARTS: Final = 256
FILE, LINK, FOLDER, RECORDS = b"0", b"2", b"5", b"x"


class ArchiveError(SandboxError):
    """An archive that a guest sent is malformed, or holds what must not be unpacked."""


# --- packing ---


def pack(path: Path) -> Iterator[bytes]:
    """An archive of a file or folder, whose name is the first part of all names in it. Blocking; raises OSError.

    ``path`` itself may be a link and is followed, those below are kept. What is neither file nor folder nor link is
    left out.
    """
    real = Path(os.path.realpath(path))
    yield from _pack(real, real.name or "root")
    yield bytes(2 * BLOCK)


def _pack(path: Path, name: str) -> Iterator[bytes]:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        yield _header(name, status, tarfile.SYMTYPE, target=str(path.readlink()))
    elif stat.S_ISDIR(status.st_mode):
        yield _header(name, status, tarfile.DIRTYPE)
        for child in sorted(path.iterdir()):
            yield from _pack(child, f"{name}/{child.name}")
    elif stat.S_ISREG(status.st_mode):
        yield from _pack_file(path, name)


def _pack_file(path: Path, name: str) -> Iterator[bytes]:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        yield _header(name, status, tarfile.REGTYPE, size=status.st_size)
        left = status.st_size
        while left > 0:
            data = file.read(min(PIECE, left)) or bytes(min(PIECE, left))  # it became shorter
            left -= len(data)
            yield data
        yield bytes(-status.st_size % BLOCK)


def _header(name: str, status: os.stat_result, kind: bytes, *, size: int = 0, target: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, target
    info.mode = status.st_mode & 0o777
    info.mtime = max(0, int(status.st_mtime))
    return info.tobuf(tarfile.PAX_FORMAT, errors="surrogateescape")


# --- unpacking ---


@dataclass(slots=True)
class _Entry:
    parts: tuple[str, ...]
    kind: bytes
    mode: int
    size: int
    mtime: int
    target: str


class Unpacker:
    """Unpacks an archive as its bytes come. Blocking: call it in a thread. Close it in any case.

    Into ``target`` if that is a folder, else as ``target``, whose folder must exist: as ``cp -r`` does. Nothing outside
    of it is touched, and no link is followed on the way. Files replace what is not a folder; they belong to whoever
    runs this, with permissions within 0777.

    Attributes:
        skipped: what was left out and why, in words for people (at most 100).
    """

    def __init__(self, target: Path) -> None:
        self.skipped: list[str] = []
        inside = target.is_dir()
        self._root_name = None if inside else target.name
        self._root = os.open(target if inside else target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._buffer = bytearray()
        self._records: dict[str, bytes] = {}
        self._file: int | None = None
        self._entry: _Entry | None = None
        self._left = 0  # of the content
        self._padding = 0
        self._zeros = 0
        self._first: str | None = None

    def close(self) -> None:
        """Give its descriptors back. Idempotent."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises `ArchiveError`, OSError."""
        self._buffer += data
        while self._step():
            pass

    def finish(self) -> None:
        """The archive has no more bytes. Raises `ArchiveError` if it was not over."""
        if self._zeros < 2:
            raise ArchiveError("the archive from the sandbox was cut off")

    def _step(self) -> bool:
        """Deal with what is in the buffer; False if more is needed."""
        if self._left > 0:
            return self._take_content()
        if self._padding > 0:
            taken = min(self._padding, len(self._buffer))
            del self._buffer[:taken]
            self._padding -= taken
            return taken > 0
        if self._zeros >= 2:
            self._buffer.clear()  # tar fills up its last record
            return False
        if len(self._buffer) < BLOCK:
            return False
        header = bytes(self._buffer[:BLOCK])
        if header == bytes(BLOCK):
            del self._buffer[:BLOCK]
            self._zeros += 1
            return True
        return self._take_header(header)

    def _take_content(self) -> bool:
        data = bytes(self._buffer[: self._left])
        if not data:
            return False
        del self._buffer[: len(data)]
        self._left -= len(data)
        if self._file is not None:
            view = memoryview(data)
            while view:
                view = view[os.write(self._file, view) :]
        if self._left == 0:
            self._end_file()
        return True

    def _take_header(self, header: bytes) -> bool:
        if self._zeros or _octal(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * 32:
            raise ArchiveError("the archive from the sandbox is malformed")
        size, kind = _octal(header[124:136]), header[156:157]
        if kind in (RECORDS, b"g"):
            whole = BLOCK + size + -size % BLOCK
            if size > MAX_RECORDS:
                raise ArchiveError("the archive from the sandbox has a header that is too long")
            if len(self._buffer) < whole:
                return False
            if kind == RECORDS:
                self._records = _records(bytes(self._buffer[BLOCK : BLOCK + size]))
            del self._buffer[:whole]
            return True
        del self._buffer[:BLOCK]
        entry = self._read_entry(header, kind, size)
        self._records = {}
        self._left, self._padding = entry.size, -entry.size % BLOCK
        self._begin(entry)
        return True

    def _read_entry(self, header: bytes, kind: bytes, size: int) -> _Entry:
        prefix, short = _text(header[345:500]), _text(header[:100])
        name = self._records.get("path", (prefix + b"/" if prefix else b"") + short)
        target = self._records.get("linkpath", _text(header[157:257]))
        if "size" in self._records:
            if not self._records["size"].isdigit() or len(self._records["size"]) > 19:
                raise ArchiveError("the archive from the sandbox is malformed")
            size = int(self._records["size"])
        if size and kind not in (FILE, b"\0"):
            raise ArchiveError("the archive from the sandbox is malformed: only files have a size")
        return _Entry(
            parts=self._parts(name),
            kind=FILE if kind == b"\0" else kind,
            mode=_octal(header[100:108]) & 0o777,
            size=size,
            mtime=min(_octal(header[136:148]), 2**33),
            target=os.fsdecode(target),
        )

    def _parts(self, name: bytes) -> tuple[str, ...]:
        """Where an entry goes, below the root folder."""
        parts = tuple(part for part in os.fsdecode(name).split("/") if part not in ("", "."))
        if name.startswith(b"/") or b"\0" in name or ".." in parts or not 0 < len(parts) <= MAX_PARTS:
            raise ArchiveError(f"the archive from the sandbox has an entry with the name {os.fsdecode(name)!r}")
        if self._first is None:
            self._first = parts[0]
        if parts[0] != self._first:
            raise ArchiveError("the archive from the sandbox holds more than what was asked for")
        return parts if self._root_name is None else (self._root_name, *parts[1:])

    def _begin(self, entry: _Entry) -> None:
        if entry.kind not in (FILE, LINK, FOLDER):
            raise ArchiveError(f"the archive from the sandbox has an entry of type {entry.kind!r}")
        if entry.kind == LINK and not _is_harmless(entry):
            self._skip(entry, f"it links out of what is copied, to {entry.target!r}")
            return
        folder = self._open_folder(entry.parts[:-1])
        try:
            self._make(entry, folder, entry.parts[-1])
        finally:
            os.close(folder)

    def _make(self, entry: _Entry, folder: int, name: str) -> None:
        if entry.kind == FOLDER:
            try:
                os.mkdir(name, 0o700, dir_fd=folder)
            except FileExistsError:
                if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                    raise
            os.chmod(name, entry.mode | 0o700, dir_fd=folder)
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
        if entry.kind == LINK:
            os.symlink(entry.target, name, dir_fd=folder)
            return
        self._entry = entry
        self._file = os.open(
            name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder
        )
        if entry.size == 0:
            self._end_file()

    def _end_file(self) -> None:
        if self._file is None or self._entry is None:
            return
        os.fchmod(self._file, self._entry.mode)
        os.utime(self._file, (self._entry.mtime, self._entry.mtime))
        os.close(self._file)
        self._file = self._entry = None

    def _open_folder(self, parts: tuple[str, ...]) -> int:
        folder = os.dup(self._root)
        for part in parts:
            try:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                inner = os.open(part, flags, dir_fd=folder)
            finally:
                os.close(folder)
            folder = inner
        return folder

    def _skip(self, entry: _Entry, why: str) -> None:
        if len(self.skipped) < 100:
            self.skipped.append(f"{'/'.join(entry.parts)!r}: {why}")


def _is_harmless(link: _Entry) -> bool:
    """Whether it leads nowhere but to what is copied along with it."""
    if link.target.startswith("/") or not link.target or "\0" in link.target:
        return False
    parts = [part for part in link.target.split("/") if part not in ("", ".")]
    down = next((number for number, part in enumerate(parts) if part != ".."), len(parts))
    may_leave = len(link.parts) - 2  # the folders below the first part
    return down <= may_leave and ".." not in parts[down:]  # behind a name it could mean the parent of another link's


def _octal(field: bytes) -> int:
    digits = field.strip(b" \0")
    if not digits:
        return 0
    if not all(0x30 <= digit <= 0x37 for digit in digits):
        raise ArchiveError("the archive from the sandbox is malformed")
    return int(digits, 8)


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _records(data: bytes) -> dict[str, bytes]:
    """pax records: ``"LENGTH KEY=VALUE\\n"`` each."""
    found: dict[str, bytes] = {}
    at = 0
    while at < len(data):
        digits = data[at : at + 8].split(b" ", 1)[0]
        if not digits.isdigit():
            raise ArchiveError("the archive from the sandbox is malformed")
        record = data[at : at + int(digits)]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if len(record) != int(digits) or not equals or record[-1:] != b"\n":
            raise ArchiveError("the archive from the sandbox is malformed")
        found[key.decode("ascii", "replace")] = value
        at += len(record)
    return found
