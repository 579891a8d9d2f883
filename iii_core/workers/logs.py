"""The log of a managed worker: one file of timed entries, kept over three generations.

The worker's two streams and what iii itself has to say stand in one file, in the order in which they came, so that a
story can be read as it happened. An entry is a line::

    2026-01-31T12:00:00.000000Z stdout F text

in the format of Kubernetes' container logs (CRI): time, stream, whether the line is whole (``F``) or goes on in the
stream's next entry (``P``), text. The stream ``iii`` is ours alone: what a worker prints can hold no line end, so it
can never look like another stream's entry.

A new run starts a new file and the previous run's becomes ``.1`` (so the story of a crash survives its restart); a file
that reaches its limit in mid-run is rotated the same way.
"""

from __future__ import annotations

import enum
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

GENERATIONS: Final = 3
MAX_BYTES: Final = 10 * 1024 * 1024
LOG_FILE: Final = "worker.log"
_LONGEST_LINE: Final = 1 << 20


class Stream(enum.StrEnum):
    """Who speaks."""

    STDOUT = "stdout"
    STDERR = "stderr"
    III = "iii"


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line without its end; ``time`` is when its last part came, as RFC 3339 in UTC."""

    time: str
    stream: Stream
    text: str


class RunLog:
    """The log of one run of one worker.

    Writing never raises and never waits for anything but the page cache: a full disk loses log lines, not the worker.

    Args:
        folder: made if missing, mode 0700.
        max_bytes: size at which the file is rotated.
    """

    def __init__(self, folder: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self._path = folder / LOG_FILE
        self._max_bytes = max_bytes
        self._file: int | None = None
        self._size = 0
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._start_file()

    def write(self, stream: Stream, data: bytes) -> None:
        """Append output of the worker, whatever pieces it comes in."""
        entries = _entries(stream, data)
        if self._size and self._size + len(entries) > self._max_bytes:
            self._start_file()
        if self._file is not None:
            with suppress(OSError):  # the disk is full: the worker matters more than its log
                self._size += os.write(self._file, entries)

    def note(self, text: str) -> None:
        """Say something as iii."""
        self.write(Stream.III, f"{text}\n".encode(errors="replace"))

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _start_file(self) -> None:
        self.close()
        rotate(self._path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(self._path, flags, 0o600)
        self._size = 0


def _entries(stream: Stream, data: bytes) -> bytes:
    now = time.time_ns()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9))
    prefix = f"{stamp}.{now % 10**9 // 1000:06d}Z {stream.value} ".encode()
    lines, end, rest = data.rpartition(b"\n")
    whole = prefix + b"F "
    entries = whole + lines.replace(b"\n", b"\n" + whole) + b"\n" if end else b""
    return entries + prefix + b"P " + rest + b"\n" if rest else entries


def rotate(path: Path) -> None:
    """Make ``path`` free: a non-empty file becomes ``.1``, ``.1`` becomes ``.2``; the oldest generation goes."""
    try:
        if path.stat().st_size == 0:
            return
    except FileNotFoundError:
        return
    for number in range(GENERATIONS - 1, 0, -1):
        with suppress(FileNotFoundError):
            _generation(path, number).replace(_generation(path, number + 1))
    path.replace(_generation(path, 1))


def _generation(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


class LineReader:
    """Gives the lines that entries make up; one reader sees the entries of one log in their order."""

    def __init__(self) -> None:
        self._begun: dict[Stream, str] = {}

    def read(self, entries: Iterable[str]) -> Iterator[LogLine]:
        """The lines that end with these entries. What is no entry (a cut-off one) is left out."""
        for entry in entries:
            stamp, _, rest = entry.partition(" ")
            name, _, rest = rest.partition(" ")
            tag, _, text = rest.partition(" ")
            if name not in _STREAMS or tag not in ("F", "P"):
                continue
            stream = Stream(name)
            text = self._begun.pop(stream, "") + text
            if tag == "P" and len(text) <= _LONGEST_LINE:
                self._begun[stream] = text
            else:
                yield LogLine(stamp, stream, text)

    def rest(self) -> Iterator[LogLine]:
        """The lines that have no end."""
        for stream, text in self._begun.items():
            yield LogLine("", stream, text)
        self._begun.clear()


_STREAMS: Final = frozenset(stream.value for stream in Stream)


def read_log(path: Path, *, max_bytes: int = MAX_BYTES) -> list[LogLine]:
    """The lines of the last ``max_bytes`` of a log, one without end included.

    A missing file has no lines; bytes that are not UTF-8 are replaced.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = max(0, size - max_bytes)
            file.seek(start)
            data = file.read(max_bytes)
    except OSError:
        return []
    entries = data.decode(errors="replace").split("\n")
    reader = LineReader()
    return [*reader.read(entries[1 if start else 0 :]), *reader.rest()]


def last_lines(lines: Iterable[LogLine], count: int, streams: Iterable[Stream] = Stream) -> list[LogLine]:
    """The last ``count`` lines of each of these streams, in the order in which they came."""
    left = dict.fromkeys(streams, count)
    kept: list[LogLine] = []
    for line in reversed(list(lines)):
        if left.get(line.stream, 0) > 0:
            left[line.stream] -= 1
            kept.append(line)
    return kept[::-1]


def tails(folder: Path, count: int, *, max_bytes: int = 256 * 1024) -> dict[str, list[str]]:
    """The last lines of each stream out of a log folder, as ``worker.status`` gives them: ``stderr_tail`` and so on."""
    lines = read_log(folder / LOG_FILE, max_bytes=max_bytes)
    return {f"{stream}_tail": [line.text for line in last_lines(lines, count, [stream])] for stream in Stream}
