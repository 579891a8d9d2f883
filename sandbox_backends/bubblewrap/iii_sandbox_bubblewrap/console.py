"""A sandbox's console: what bwrap and the agent say, on its way to a file of bounded size.

It comes through a pipe and not straight into the file: whoever holds the file open for writing could fill the disk.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from iii_sandbox_bubblewrap.policy import CONSOLE_LIMIT, CONSOLE_TAIL

if TYPE_CHECKING:
    from pathlib import Path

DROPPED = b"[earlier lines were dropped]\n"
_PIECE = 64 * 1024
_UNSAFE = re.compile(r"[^\x20-\x7e\n\t\u00a0-\U0010ffff]")


class Console:
    """The console of one boot; `run` must be running until it ends.

    ``pipe`` is the end to write to. It must be closed here once the sandbox has its copy.
    """

    def __init__(self, path: Path, *, limit: int = CONSOLE_LIMIT) -> None:
        self._limit = limit
        self._file = _open(path)
        self._size = os.fstat(self._file).st_size
        self._tail = b""
        self._ended = trio.Event()
        source, self.pipe = os.pipe2(os.O_CLOEXEC)
        self._source = trio.lowlevel.FdStream(source)

    async def run(self) -> None:
        """Take what is written until nobody can write any more."""
        try:
            async with self._source:
                while data := await self._source.receive_some(_PIECE):
                    self._tail = (self._tail + data)[-CONSOLE_TAIL:]
                    with suppress(OSError):  # the disk is full: the sandbox matters more than its console
                        self._write(data)
        finally:
            os.close(self._file)
            self._ended.set()

    async def wait_ended(self) -> None:
        """Wait until everything has been taken."""
        await self._ended.wait()

    def tail(self) -> str:
        """What this boot wrote last, at most 4 KiB, as text that is safe to print."""
        return _UNSAFE.sub("\ufffd", self._tail.decode(errors="replace")).strip()

    def _write(self, data: bytes) -> None:
        if self._size + len(data) > self._limit:
            data = self._cut(data)
        self._size += os.write(self._file, data)

    def _cut(self, data: bytes) -> bytes:
        """Empty the file; what it shall begin with is its last part, from a line's start, and ``data``."""
        keep = max(0, self._limit // 2 - len(data))
        last = os.pread(self._file, keep, max(0, self._size - keep)) + data[-self._limit // 2 :]
        os.ftruncate(self._file, 0)
        self._size = 0
        return DROPPED + last[last.find(b"\n") + 1 :]


def _open(path: Path) -> int:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
