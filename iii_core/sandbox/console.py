"""A sandbox's console: what its launcher or VMM and its guest say, on its way to a file of bounded size.

It comes through a stream and not straight into the file: whoever holds the file open for writing could fill the disk.
"""

from __future__ import annotations

import os
import re
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

FILE_LIMIT: Final = 1024 * 1024
TAIL_BYTES: Final = 4096
DROPPED: Final = b"[earlier lines were dropped]\n"
_PIECE: Final = 64 * 1024
_CONTROL_SEQUENCE: Final = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|[@-Z\\-_])")
_UNSAFE: Final = re.compile(r"[^\x20-\x7e\n\t\u00a0-\U0010ffff]")


class Console:
    """The console of one boot: appends to a file, of which only the last part is kept when it grows over ``limit``.

    One or more streams are taken by `take`, each in a task of its own; the file is closed when the last one has ended.
    """

    def __init__(self, path: Path, *, limit: int = FILE_LIMIT) -> None:
        self.path = path
        self._limit = limit
        self._file = _open(path)
        self._size = os.fstat(self._file).st_size
        self._tail = b""
        self._taking = 0
        self._ended = trio.Event()

    async def take(
        self, stream: trio.abc.ReceiveStream, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Take what comes over ``stream`` (now ours to close) until it ends or breaks."""
        self._taking += 1
        task_status.started()
        try:
            async with stream:
                while data := await stream.receive_some(_PIECE):
                    self._tail = (self._tail + data)[-TAIL_BYTES:]
                    with suppress(OSError):  # the disk is full: the sandbox matters more than its console
                        self._write(bytes(data))
        except trio.BrokenResourceError:
            pass
        finally:
            self._taking -= 1
            if self._taking == 0:
                self.close()

    @asynccontextmanager
    async def pipe(self, nursery: trio.Nursery) -> AsyncGenerator[int]:
        """A descriptor to write to, ours until the block ends; what comes through it is taken in a task of ``nursery``.

        The pipe lives on in whoever inherits the descriptor.
        """
        source, target = os.pipe2(os.O_CLOEXEC)
        try:
            with trio.CancelScope(shield=True):  # it takes hold at once, or nobody would close its end
                await nursery.start(self.take, trio.lowlevel.FdStream(source))
            yield target
        finally:
            os.close(target)

    @property
    def taking(self) -> bool:
        """Whether a stream is being taken."""
        return self._taking > 0

    def close(self) -> None:
        """Close the file; for a console that nothing was ever taken for. Idempotent."""
        if not self._ended.is_set():
            os.close(self._file)
            self._ended.set()

    async def wait_ended(self) -> None:
        """Wait until everything has been taken."""
        await self._ended.wait()

    def tail(self) -> str:
        """What this boot wrote last, at most `TAIL_BYTES`, as text that is safe to print."""
        text = self._tail.decode(errors="replace").replace("\r\n", "\n")
        return _UNSAFE.sub("\ufffd", _CONTROL_SEQUENCE.sub("", text)).strip()

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
