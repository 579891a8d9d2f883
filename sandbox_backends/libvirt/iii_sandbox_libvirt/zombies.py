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

_INTERVAL: Final = 0.02
_NAME_BYTES: Final = 15  # proc(5): a process's name is cut there


class Zombies:
    """Those of one program."""

    def __init__(self, program: str) -> None:
        self._name = program.encode()[:_NAME_BYTES]
        self._session = os.getsid(0)
        self.spared: set[int] = set()
        """Those that somebody else collects, at once, to learn how they ended."""

    async def reap(self) -> None:
        """Collect until cancelled, which is for as long as libvirt works on a call: another's wait has no event."""
        while True:
            self._reap_now()
            await trio.sleep(_INTERVAL)

    def _reap_now(self) -> None:
        for pid in set(self._children()) - self.spared:
            with suppress(OSError):
                if self._is_one(Path(f"/proc/{pid}/stat").read_bytes()):
                    os.waitpid(pid, os.WNOHANG)

    def _children(self) -> list[int]:
        found: list[int] = []
        for task in Path("/proc/self/task").iterdir():
            with suppress(OSError):
                found += map(int, (task / "children").read_bytes().split())
        return found

    def _is_one(self, stat: bytes) -> bool:
        """By its name, and by its session: what libvirt waits for itself is in ours, daemons have left it (proc(5))."""
        name, _, rest = stat.partition(b" (")[2].rpartition(b") ")
        state, _, _, session, *_ = rest.split()
        return name == self._name and state == b"Z" and int(session) != self._session
