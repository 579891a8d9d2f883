"""The project lock: one writer of a project's files at a time, across processes (spec worker-cli §0.7)."""

from __future__ import annotations

import fcntl
import os
import re
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from iii_core.errors import ConfigIoError, LockBusy
from iii_core.project.files import hint_for
from iii_core.project.locate import make_state_dir

if TYPE_CHECKING:
    from collections.abc import Generator

    from iii_core.project.locate import Project

DEFAULT_WAIT: Final = 2.0
_POLL: Final = 0.02


@contextmanager
def project_lock(project: Project, *, wait: float = DEFAULT_WAIT) -> Generator[None]:
    """Hold ``.iii/lock`` for the block; not reentrant, and a dead holder never blocks (flock(2)).

    Blocks the thread up to ``wait`` seconds (flock has nothing to wait on that can be given up, so this polls); an
    async caller passes 0 or runs the whole edit in a thread.

    Raises `LockBusy` with ``details["holder_pid"]``, or `ConfigIoError`.
    """
    path = make_state_dir(project) / "lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigIoError(
            f"cannot open {path}: {error.strerror}", hint=hint_for(error), details={"path": str(path)}
        ) from error
    try:
        _acquire(descriptor, time.monotonic() + wait)
        _sign(descriptor)
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise _busy(descriptor) from None
            time.sleep(_POLL)
        else:
            return


def _sign(descriptor: int) -> None:
    """Say who holds the lock. It is held all the same where a full disk has no room for that."""
    text = b"pid=%d\n" % os.getpid()
    with suppress(OSError):
        os.pwrite(descriptor, text, 0)
        os.truncate(descriptor, len(text))


def _busy(descriptor: int) -> LockBusy:
    found = re.match(rb"pid=([0-9]{1,10})\n", os.pread(descriptor, 64, 0))
    pid = int(found[1]) if found else None
    own = pid == os.getpid()
    who = "this process" if own else f"process {pid}" if pid else "another process"
    return LockBusy(
        f"the project is being changed by {who}",
        hint="try again when it is done",
        details={"holder_pid": pid, "holder_is_self": own},
    )
