"""Names and user ids that are in use for as long as their taker lives: locks on files and folders (flock(2))."""

from __future__ import annotations

import fcntl
import os
import random
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from iii_core.errors import SandboxError
from iii_core.sandbox.ids import MACHINE_ID_COUNT, MACHINE_IDS

if TYPE_CHECKING:
    from collections.abc import Iterator


def lock(path: Path) -> int | None:
    """A descriptor that holds the lock on a file or folder; None if another one does, or it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:  # not removed meanwhile
            return descriptor
    except BlockingIOError:
        pass
    os.close(descriptor)
    return None


class IdLease:
    """A user and group id that is nobody else's; see `take_id`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.id = int(path.name)
        self._path = path
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """It may be somebody else's now. Idempotent."""
        if self._descriptor is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None


def take_id(folder: Path) -> IdLease:
    """One of `MACHINE_IDS` that no process has, and that nobody takes from ``folder`` until it is released.

    What runs on after its engine was killed keeps its id to itself all the same. The first one tried is a random one,
    so that ids rarely come back soon. Raises `SandboxError` if there is none.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _sweep(folder)
    first = random.randrange(MACHINE_ID_COUNT)  # noqa: S311 - no secret
    for number in range(MACHINE_ID_COUNT):
        path = folder / str(MACHINE_IDS + (first + number) % MACHINE_ID_COUNT)
        path.touch(mode=0o600)
        descriptor = lock(path)
        if descriptor is not None:
            if int(path.name) not in _in_use():
                return IdLease(path, descriptor)
            os.close(descriptor)
    raise SandboxError(f"all {MACHINE_ID_COUNT} user ids for machines are taken", hint="stop some sandboxes")


def _sweep(folder: Path) -> None:
    """Remove what the killed have left. Who is about to lock one of these takes another."""
    for path in folder.iterdir():
        descriptor = lock(path)
        if descriptor is not None:
            IdLease(path, descriptor).release()


def _in_use() -> set[int]:
    return set(_owners())


def _owners() -> Iterator[int]:
    """Of all processes (proc_pid(5)); those that are not dumpable, as programs of another user, seem to be root's."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(FileNotFoundError, ProcessLookupError):
                yield entry.stat().st_uid
