"""Running boots, as the driver sees them through the keeper's events."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from iii_core.errors import SandboxError
from iii_core.sandbox.launcher import Boot
from iii_core.sandbox.process_boot import KILL_TIMEOUT
from iii_sandbox_bubblewrap.keeper_client import KeeperGone

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from iii_sandbox_bubblewrap.keeper_client import KeeperClient

_EXEC_POLL: Final = 0.001


class BubblewrapBoot(Boot):
    """One run of bwrap, known to its keeper by ``number``."""

    def __init__(self, number: int, link: socket.socket, keeper: KeeperClient, tidy: Callable[[], object]) -> None:
        self.number = number
        self.link = link
        self.pid: int | None = None
        self.agent: int | None = None
        self.exit = ""
        self.ended = trio.Event()
        self.keeper = keeper
        self._tidy = tidy
        self._progress = trio.Event()

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

    def take(self, role: str, pidfd: int) -> None:
        """The keeper names a process of this boot."""
        if role == "launcher":
            self.pid = pid_behind(pidfd)
        else:
            self.agent = pid_behind(pidfd)
        self._wake()

    def end(self, how: str) -> None:
        """Nothing of it is left."""
        self.exit = how
        self._tidy()
        self.ended.set()
        self._wake()

    async def kill(self) -> None:
        """See `Boot.kill`."""
        if not self.ended.is_set():
            with suppress(KeeperGone):
                await self.keeper.request("kill", boot=self.number)
        with trio.move_on_after(KILL_TIMEOUT, shield=True):
            await self.ended.wait()
            return
        raise SandboxError(
            f"a sandbox did not end within {KILL_TIMEOUT:g} s of SIGKILL",
            hint="a process in it hangs in the kernel; is its disk or network file system stuck?",
        )

    def _wake(self) -> None:
        self._progress.set()
        self._progress = trio.Event()


class BootTable:
    """The live boots of a keeper, fed by its events."""

    def __init__(self) -> None:
        self._boots: dict[int, BubblewrapBoot] = {}

    def add(self, boot: BubblewrapBoot) -> None:
        """Expect events of a boot that is about to be asked for."""
        self._boots[boot.number] = boot

    def forget(self, boot: BubblewrapBoot) -> None:
        """The keeper refused it: no event will come."""
        if self._boots.pop(boot.number, None) is not None:
            boot.end("never started")

    def event(self, message: dict[str, Any], descriptors: list[int]) -> None:
        """Take one event of the keeper."""
        boot = self._boots.get(message["boot"])
        if boot is not None and descriptors:
            boot.take(message["role"], descriptors[0])
        elif boot is not None and "exit" in message:
            del self._boots[boot.number]
            boot.end(message["exit"])
        for descriptor in descriptors:
            os.close(descriptor)

    def bury_all(self) -> None:
        """The keeper has ended, and every process below it."""
        for number in list(self._boots):
            self._boots.pop(number).end("signal 9")

    async def wait_none(self) -> None:
        """Wait until no boot is left."""
        for boot in list(self._boots.values()):
            await boot.ended.wait()


def pid_behind(pidfd: int) -> int | None:
    """The process's number here, whatever it is in the keeper's namespace; None if it has ended (``pidfd_open(2)``)."""
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "Pid":
            return int(value) if int(value) > 0 else None
    return None
