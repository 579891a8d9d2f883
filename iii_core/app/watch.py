"""Noticing that files changed: inotify(7), awaited by trio."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

DEBOUNCE: Final = 0.1  # editors write, rename and touch in one burst
_CLOSE_WRITE, _MOVED_TO, _CREATE, _DELETE = 0x8, 0x80, 0x100, 0x200
_EVENT: Final = struct.Struct("iIII")  # struct inotify_event: wd, mask, cookie, len


def _open_inotify(folder: Path) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    mask = _CLOSE_WRITE | _MOVED_TO | _CREATE | _DELETE
    if descriptor < 0 or libc.inotify_add_watch(descriptor, os.fsencode(folder), mask) < 0:
        code = ctypes.get_errno()
        if descriptor >= 0:
            os.close(descriptor)
        raise OSError(code, os.strerror(code), str(folder))
    return descriptor


def _names(data: bytes) -> set[str]:
    found: set[str] = set()
    while data:
        length = _EVENT.unpack_from(data)[3]
        found.add(os.fsdecode(data[_EVENT.size : _EVENT.size + length].rstrip(b"\0")))
        data = data[_EVENT.size + length :]
    return found


class FileWatch:
    """Tells of changes to some files of a folder, also when they are replaced by rename, as editors do.

    Raises OSError where the folder cannot be watched.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._descriptor = _open_inotify(folder)

    def close(self) -> None:
        """Stop watching."""
        os.close(self._descriptor)

    async def changed(self) -> None:
        """Return once a file has changed, and then none of them for `DEBOUNCE` seconds."""
        await self._event()
        while True:
            with trio.move_on_after(DEBOUNCE) as scope:
                await self._event()
            if scope.cancelled_caught:
                return

    async def _event(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._descriptor)
            try:
                names = _names(os.read(self._descriptor, 65536))
            except BlockingIOError:
                continue
            if self._names & names:
                return
