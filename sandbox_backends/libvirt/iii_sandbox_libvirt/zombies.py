"""Collects QEMUs that have ended, for libvirt: it waits until they are gone, and they are nobody's children but ours.

QEMU is started as a daemon, so it falls to the sandbox host as child subreaper. The sandbox host reaps every orphan in
the end, but takes its time to tell it from children that somebody still waits for; by their name these can be told at
once. What libvirt forked itself and waits for is never touched, however long that takes on a busy machine: such a child
is that of the thread that forked it, and an orphan is the first thread's (Linux, ``find_new_reaper``).
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

THREAD: Final = "iii-libvirt"
"""The name of threads that libvirt forks in: a QEMU that is killed before it is one still has it."""
_INTERVAL: Final = 0.02
_NAME_BYTES: Final = 15  # proc(5): a process's name is cut there


class Zombies:
    """Those of one program."""

    def __init__(self, program: str) -> None:
        self._names = (program.encode()[:_NAME_BYTES], THREAD.encode())
        self._session = os.getsid(0)
        self.spared: set[int] = set()
        """Those that somebody else collects, at once, to learn how they ended."""

    async def reap(self) -> None:
        """Collect until cancelled, which is for as long as libvirt works on a call: another's wait has no event."""
        while True:
            self._reap_now()
            await trio.sleep(_INTERVAL)

    def _reap_now(self) -> None:
        for pid in set(_orphans()) - self.spared:
            if self._name_of(pid) in self._names:
                with suppress(OSError):
                    os.waitpid(pid, os.WNOHANG)

    def _name_of(self, pid: int) -> bytes | None:
        """Of a zombie that has left our session, as daemons have (proc(5))."""
        try:
            name, _, rest = Path(f"/proc/{pid}/stat").read_bytes().partition(b" (")[2].rpartition(b") ")
        except OSError:
            return None
        state, _, _, session, *_ = rest.split()
        return name if state == b"Z" and int(session) != self._session else None


def _orphans() -> list[int]:
    """The children of our first thread: those it started, and those that fell to us (proc_pid_task_children(5))."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_bytes().split()]
