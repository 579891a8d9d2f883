"""Running boots, as the driver sees them through the keeper's events."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio

_BURIAL_TIMEOUT = 10.0
_EXEC_POLL = 0.001


class RunningBoot:
    """One boot. ``ended`` is set, and ``exit`` says how, once nothing of it is left.

    Pidfds stand for bwrap and the agent, so that even if the keeper dies their end can be awaited.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.launcher: int | None = None
        self.agent: int | None = None
        self.exit = ""
        self.ended = trio.Event()
        self._progress = trio.Event()
        self._pidfds: list[int] = []

    async def wait_running(self) -> bool:
        """Wait until the agent runs (True) or the boot has ended (False).

        bwrap says when it has made its child, and nothing says when that child has become the agent; but until then it
        is called ``bwrap``. Those are a few milliseconds.
        """
        while self.agent is None and not self.ended.is_set():
            await self._progress.wait()
        while not self.ended.is_set() and self._is_bwrap_yet():  # noqa: ASYNC110
            await trio.sleep(_EXEC_POLL)
        return not self.ended.is_set()

    def _is_bwrap_yet(self) -> bool:
        try:
            return Path(f"/proc/{self.agent}/comm").read_bytes() == b"bwrap\n"
        except OSError:  # it has ended, and the keeper is about to say so
            return True

    def take(self, role: str, pid: int, pidfd: int) -> None:
        """The keeper names a process of this boot."""
        self._pidfds.append(pidfd)
        if role == "launcher":
            self.launcher = pid
        else:
            self.agent = pid
        self._wake()

    def end(self, how: str) -> None:
        """Nothing of it is left."""
        self.exit = how
        for descriptor in self._pidfds:
            os.close(descriptor)
        self._pidfds.clear()
        self.ended.set()
        self._wake()

    async def bury(self) -> None:
        """Without a keeper: make sure that its processes end, and wait for that."""
        with trio.move_on_after(_BURIAL_TIMEOUT):
            for descriptor in self._pidfds:
                with suppress(ProcessLookupError, PermissionError):
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                await trio.lowlevel.wait_readable(descriptor)

    def _wake(self) -> None:
        self._progress.set()
        self._progress = trio.Event()


class BootTable:
    """The live boots of a keeper, fed by its events."""

    def __init__(self) -> None:
        self._boots: dict[int, RunningBoot] = {}

    def begin(self, number: int) -> RunningBoot:
        """Expect events of a boot that is about to be asked for."""
        boot = self._boots[number] = RunningBoot(number)
        return boot

    def forget(self, boot: RunningBoot) -> None:
        """The keeper refused it: no event will come."""
        if self._boots.pop(boot.number, None) is not None:
            boot.end("never started")

    def event(self, message: dict[str, Any], descriptors: list[int]) -> None:
        """Take one event of the keeper."""
        boot = self._boots.get(message["boot"])
        role = "launcher" if "launcher" in message else "agent"
        if boot is not None and descriptors:
            boot.take(role, message[role], descriptors.pop())
        elif boot is not None and "exit" in message:
            del self._boots[boot.number]
            boot.end(message["exit"])
        for descriptor in descriptors:
            os.close(descriptor)

    async def bury_all(self) -> None:
        """The keeper is gone and its sandboxes are dying: see each of them buried."""
        for boot in list(self._boots.values()):
            await boot.bury()
            del self._boots[boot.number]
            boot.end("signal 9")

    async def wait_none(self) -> None:
        """Wait until no boot is left."""
        for boot in list(self._boots.values()):
            await boot.ended.wait()
