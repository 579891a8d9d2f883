"""Collects QEMUs that have ended, for libvirt: it waits until they are gone, and they are nobody's children but ours.

QEMU is started as a daemon, so it falls to the sandbox host as child subreaper. The sandbox host reaps every orphan in
the end, but takes its time to tell it from children that somebody still waits for; by their name these can be told at
once.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

THREAD: Final = "iii-libvirt"
"""The name of threads that libvirt forks in: a QEMU that is killed before it is one still has it. So do children that
libvirt waits for itself, and it does so at once."""
PATIENCE: Final = 1.0
_INTERVAL: Final = 0.02
_NAME_BYTES: Final = 15  # proc(5): a process's name is cut there


class Zombies:
    """Those of one program."""

    def __init__(self, program: str) -> None:
        self._name = program.encode()[:_NAME_BYTES]
        self._session = os.getsid(0)
        self._early: dict[int, float] = {}
        self.spared: set[int] = set()
        """Those that somebody else collects, at once, to learn how they ended."""

    async def reap(self) -> None:
        """Collect until cancelled, which is for as long as libvirt works on a call: another's wait has no event."""
        while True:
            self._reap_now()
            await trio.sleep(_INTERVAL)

    def _reap_now(self) -> None:
        dead = {pid: name for pid in set(self._children()) - self.spared if (name := self._name_of(pid)) is not None}
        now = trio.current_time()
        self._early = {pid: self._early.get(pid, now) for pid, name in dead.items() if name == THREAD.encode()}
        for pid, name in dead.items():
            if name == self._name or now - self._early.get(pid, now) > PATIENCE:
                with suppress(OSError):
                    os.waitpid(pid, os.WNOHANG)

    def _children(self) -> list[int]:
        found: list[int] = []
        for task in Path("/proc/self/task").iterdir():
            with suppress(OSError):
                found += map(int, (task / "children").read_bytes().split())
        return found

    def _name_of(self, pid: int) -> bytes | None:
        """Of a zombie that has left our session: what libvirt waits for itself is mostly in ours (proc(5))."""
        try:
            name, _, rest = Path(f"/proc/{pid}/stat").read_bytes().partition(b" (")[2].rpartition(b") ")
        except OSError:
            return None
        state, _, _, session, *_ = rest.split()
        return name if state == b"Z" and int(session) != self._session else None
