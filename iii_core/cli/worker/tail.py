"""Reading log files from their end, and following them through rotation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_TAIL: Final = 1 << 20
_CHUNK: Final = 1 << 16
_GENERATIONS: Final = 16
_LONGEST_LINE: Final = 1 << 20


def tail_lines(path: Path, count: int) -> list[str]:
    """The last lines of a file, out of its last MiB; none where there is no file. What is not UTF-8 is replaced."""
    try:
        with path.open("rb") as file:
            return _tail(file, count)
    except OSError:
        return []


def has_output(folder: str) -> bool:
    """Whether a log folder holds any output."""
    return any(_size(Path(folder) / name) for name in ("stdout.log", "stderr.log"))


class Follower:
    """Gives what is added to a log file, whole lines only.

    A file that is replaced is read to its end and then left for the new one; one that shrinks is read from its start.
    It may not exist yet.
    """

    def __init__(self, path: Path, *, count: int) -> None:
        self._path = path
        self._count = count
        self._file: BinaryIO | None = None
        self._rest = b""

    def start(self) -> list[str]:
        """Open the file and give its last lines; following goes on behind them."""
        try:
            self._file = self._path.open("rb")
        except OSError:
            return []
        return _tail(self._file, self._count, whole=True)

    def poll(self) -> Iterator[str]:
        """Whole lines that were added since the last call."""
        if self._file is not None:
            yield from self._read(self._file)
            if self._is_current(self._file):
                return
            for missed in self._missed(self._file):
                yield from self._change_to(missed)
        try:
            current = self._path.open("rb")
        except OSError:
            return
        yield from self._change_to(current)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _change_to(self, file: BinaryIO) -> Iterator[str]:
        """Leave one file for its successor; what has no line end there will never get one."""
        if self._rest:
            yield _text(self._rest)
            self._rest = b""
        self.close()
        self._file = file
        yield from self._read(file)

    def _missed(self, file: BinaryIO) -> list[BinaryIO]:
        """The generations (``.1`` is the youngest) between ``file`` and the current one, oldest first."""
        missed: list[BinaryIO] = []
        for number in range(1, _GENERATIONS + 1):
            try:
                older: BinaryIO = self._path.with_name(f"{self._path.name}.{number}").open("rb")
            except OSError:
                break
            if os.path.sameopenfile(older.fileno(), file.fileno()):
                older.close()
                return missed[::-1]
            missed.append(older)
        for older in missed:  # the file we had is gone, so nobody knows which of these we have seen
            older.close()
        return []

    def _is_current(self, file: BinaryIO) -> bool:
        mine = os.fstat(file.fileno())
        try:
            named = self._path.stat()
        except OSError:
            return True  # rotation is between its two renames, or the worker was removed
        return (mine.st_dev, mine.st_ino) == (named.st_dev, named.st_ino)

    def _read(self, file: BinaryIO) -> Iterator[str]:
        if os.fstat(file.fileno()).st_size < file.tell():
            file.seek(0)
            self._rest = b""
        while data := file.read(_CHUNK):
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                yield _text(line)
            if len(self._rest) > _LONGEST_LINE:
                yield _text(self._rest)
                self._rest = b""


def _tail(file: BinaryIO, count: int, *, whole: bool = False) -> list[str]:
    """The last lines; ``whole`` leaves out one that has no end yet, and the file's position before it."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - MAX_TAIL)
    file.seek(start)
    lines = file.read(size - start).split(b"\n")
    rest = lines.pop()
    if rest and whole:
        file.seek(-len(rest), os.SEEK_CUR)
    elif rest:
        lines.append(rest)
    if start and len(lines) > 1:
        del lines[0]
    return [_text(line) for line in lines[-count:]] if count else []


def _text(line: bytes) -> str:
    return line.removesuffix(b"\r").decode("utf-8", "replace")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
