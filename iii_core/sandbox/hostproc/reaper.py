"""Reaps what is not ours: processes that were orphaned below us and fell to us as child subreaper (``prctl(2)``).

A child that this program started has an owner that waits for it, and must not be reaped behind the owner's back. What
falls to us falls to our first thread (Linux, ``find_new_reaper``), so the children of the others, in which libraries
fork and wait, are none of ours. Those that the first thread started are told apart by time: an owner collects its child
at once, so a zombie that is still there at a second look is nobody's.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

SECOND_LOOK = 2.0


async def reap_orphans() -> None:
    """Reap orphans until cancelled; idle while no child ends."""
    with trio.open_signal_receiver(signal.SIGCHLD) as signals:
        async for _ in signals:
            seen = set(_zombies())
            while seen:
                await trio.sleep(SECOND_LOOK)
                now = set(_zombies())
                for pid in seen & now:
                    _reap(pid)
                seen = now - seen


def _zombies() -> Iterator[int]:
    """Children of our first thread that have ended and wait to be reaped (proc_pid_task_children(5))."""
    for pid in map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_bytes().split()):
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if stat[stat.rindex(b")") + 2 :].startswith(b"Z"):
            yield pid


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return
