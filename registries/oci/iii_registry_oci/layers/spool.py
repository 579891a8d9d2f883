"""Files that are read at any place; a layer's archive, unpacked and checked, in one without a name."""

from __future__ import annotations

import os
import tempfile
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PIECE = 1024 * 1024
_ZEROS = bytes(PIECE)


class ReaderAt:
    """A file that was opened to be read at any place; several threads may read at once.

    Attributes:
        size: its bytes when it was opened. A file that others cut short since gives less.
    """

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self.size = size

    def fileno(self) -> int:
        """Its descriptor, open until `close`."""
        return self._file.fileno()

    def read(self, at: int, count: int) -> bytes:
        """At most ``count`` bytes from the place ``at`` on; fewer only at the end."""
        return b"".join(self.pieces(at, count)) if count > PIECE else os.pread(self._file.fileno(), count, at)

    def pieces(self, at: int, count: int) -> Iterator[bytes]:
        """The same in pieces of at most 1 MiB."""
        while count and (piece := os.pread(self._file.fileno(), min(count, PIECE), at)):
            at, count = at + len(piece), count - len(piece)
            yield piece

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Spool(ReaderAt):
    """Bytes that are appended by one thread, and read at any place once they are complete.

    Its disk space is free again when it is closed, or when the process dies.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(tempfile.TemporaryFile(dir=folder, buffering=0), 0)  # noqa: SIM115 (closed by `close`)

    def append(self, data: bytes) -> None:
        """Add ``data``. Zeros take no space on the disk, so that those who pack gigabytes of them gain nothing."""
        at, self.size = self.size, self.size + len(data)
        if data == _ZEROS[: len(data)]:
            os.ftruncate(self._file.fileno(), self.size)
            return
        view = memoryview(data)
        while view:
            written = os.pwrite(self._file.fileno(), view, at)
            at, view = at + written, view[written:]
