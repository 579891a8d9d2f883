"""The log files of a managed worker: ``stdout.log`` and ``stderr.log`` in one folder, kept over three generations.

A new run starts new files and the previous run's become ``.1`` (so the story of a crash survives its restart); a file
that reaches its limit in mid-run is rotated the same way. What iii itself has to say goes to ``stderr.log``, marked.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

GENERATIONS: Final = 3
MAX_BYTES: Final = 10 * 1024 * 1024
STDOUT: Final = 1
STDERR: Final = 2
FILE_NAMES: Final = {STDOUT: "stdout.log", STDERR: "stderr.log"}


class RunLog:
    """The log of one run of one worker.

    Writing never raises and never waits for anything but the page cache: a full disk loses log lines, not the worker.

    Args:
        folder: made if missing, mode 0700.
        max_bytes: size at which a file is rotated.
    """

    def __init__(self, folder: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._files: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for channel in FILE_NAMES:
            self._start_file(channel)

    def write(self, channel: int, data: bytes) -> None:
        """Append output of the worker; ``channel`` is 1 (stdout) or 2 (stderr)."""
        if self._sizes[channel] and self._sizes[channel] + len(data) > self._max_bytes:
            self._start_file(channel)
        with suppress(OSError):  # the disk is full: the worker matters more than its log
            self._sizes[channel] += os.write(self._files[channel], data)

    def note(self, text: str) -> None:
        """Say something as iii, on a line of its own in ``stderr.log``."""
        self.write(STDERR, f"[iii] {text}\n".encode(errors="replace"))

    def close(self) -> None:
        """Close the files. Idempotent."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _start_file(self, channel: int) -> None:
        if channel in self._files:
            os.close(self._files.pop(channel))
        path = self._folder / FILE_NAMES[channel]
        rotate(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._files[channel] = os.open(path, flags, 0o600)
        self._sizes[channel] = 0


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


def tail(path: Path, lines: int, *, max_bytes: int = 1024 * 1024) -> list[str]:
    """The last lines of a log file, at most ``lines`` of them out of its last ``max_bytes``.

    A missing file has no lines; bytes that are not UTF-8 are replaced.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = max(0, size - max_bytes)
            file.seek(start)
            text = file.read(max_bytes).decode(errors="replace")
    except FileNotFoundError:
        return []
    found = text.splitlines()
    return (found[1:] if start else found)[-lines:]


def _generation(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")
