"""Following log files through rotation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from iii_core.workers.logs import LOG_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK: Final = 1 << 16
_GENERATIONS: Final = 16
_LONGEST_LINE: Final = 1 << 20


def has_output(folder: str | Path) -> bool:
    """Whether a log folder holds any output."""
    try:
        return bool(folder) and (Path(folder) / LOG_FILE).stat().st_size > 0
    except OSError:
        return False


class Follower:
    """Gives what is in a log file, and then what is added to it, whole lines only.

    A file that is replaced is read to its end and then left for the new one; one that shrinks is read from its start.
    It may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._rest = b""

    def poll(self) -> Iterator[str]:
        """Whole lines that were added since the last call; at first all."""
        if self._file is not None:
            yield from self._read(self._file)
            if self._is_current(self._file):
                return
            yield from self._read(self._file)  # what was added before it was replaced, and after we had read it
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


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace")
