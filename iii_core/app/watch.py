"""Noticing that files changed: inotify(7), awaited by trio."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

DEBOUNCE: Final = 0.1  # editors write, rename and touch in one burst
WRITING_TIMEOUT: Final = 2.0  # how long a file that is being written is waited for
_MODIFY, _CLOSE_WRITE, _MOVED_TO, _CREATE, _DELETE = 0x2, 0x8, 0x80, 0x100, 0x200
_EVENT: Final = struct.Struct("iIII")  # struct inotify_event: wd, mask, cookie, len


def _open_inotify(folder: Path) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    mask = _MODIFY | _CLOSE_WRITE | _MOVED_TO | _CREATE | _DELETE
    if descriptor < 0 or libc.inotify_add_watch(descriptor, os.fsencode(folder), mask) < 0:
        code = ctypes.get_errno()
        if descriptor >= 0:
            os.close(descriptor)
        raise OSError(code, os.strerror(code), str(folder))
    return descriptor


def _events(data: bytes) -> Iterator[tuple[str, int]]:
    while data:
        _, mask, _, length = _EVENT.unpack_from(data)
        yield os.fsdecode(data[_EVENT.size : _EVENT.size + length].rstrip(b"\0")), mask
        data = data[_EVENT.size + length :]


class FileWatch:
    """Tells of changes to some files of a folder, also when they are replaced by rename, as editors do.

    Raises OSError where the folder cannot be watched.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._in_writing: set[str] = set()
        self._descriptor = _open_inotify(folder)

    def close(self) -> None:
        """Stop watching."""
        os.close(self._descriptor)

    async def changed(self) -> None:
        """Return once a file has changed, none of them is being written, and none changes for `DEBOUNCE` seconds.

        A file that somebody keeps open for writing is waited for no longer than `WRITING_TIMEOUT` seconds.
        """
        while not await self._change():
            pass
        while True:
            with trio.move_on_after(WRITING_TIMEOUT if self._in_writing else DEBOUNCE) as scope:
                await self._change()
            if scope.cancelled_caught:
                self._in_writing.clear()
                return

    async def _change(self) -> bool:
        """Wait until something happens to a file; whether it is what it is to be, as far as can be told."""
        while True:
            await trio.lowlevel.wait_readable(self._descriptor)
            try:
                events = [event for event in _events(os.read(self._descriptor, 65536)) if event[0] in self._names]
            except BlockingIOError:
                continue
            for name, mask in events:
                (self._in_writing.add if mask & _MODIFY else self._in_writing.discard)(name)
            if events:
                return any(not mask & _MODIFY for _, mask in events)
