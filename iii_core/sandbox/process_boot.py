"""A sandbox whose end is the end of one process of ours: `launch_process` is most of its `Launcher`."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from iii_core.errors import BackendUnavailable, SandboxError, SpawnError
from iii_core.link.handshake import render_knock
from iii_core.sandbox.host_processes import ProcessRecords, spawn
from iii_core.sandbox.hostclient import PROCESS_FOLDER
from iii_core.sandbox.launcher import Boot, LaunchFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from iii_core.records import OpenContext
    from iii_core.sandbox.console import Console
    from iii_core.sandbox.host_processes import HostProcess

KILL_TIMEOUT: Final = 15.0
"""Seconds. A sandbox whose root is an overlay ends when all that waits for the disk below is written, whoever wrote it:
unmounting syncs that file system (Linux, ``ovl_sync_fs``)."""


class ProcessBoot(Boot):
    """See `Boot`. Made by `launch_process`."""

    def __init__(self, process: HostProcess, link: socket.socket) -> None:
        self.link = link
        self.pid: int | None = process.pid
        self.exit = ""
        self.ended = trio.Event()
        self._process = process
        self._others: list[int] = []

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Wait for the end, and tell it."""
        task_status.started()
        try:
            code = await self._process.run()
            for descriptor in self._others:  # they are told to end, and do so a moment later
                await trio.lowlevel.wait_readable(descriptor)
        finally:
            for descriptor in self._others:
                _reap(descriptor)
                os.close(descriptor)
        self.exit = f"signal {-code}" if code < 0 else f"exit {code}"
        self.ended.set()

    async def wait_agent(self) -> None:
        """Wait until the agent answers. Raises `LaunchFailed` if everything has ended before."""
        self.link.setblocking(False)
        with suppress(OSError):  # it has ended: broken pipe, connection reset
            self.link.send(render_knock())
            await trio.lowlevel.wait_readable(self.link)
            if self.link.recv(1, socket.MSG_PEEK):
                self._others = list(_open_descendants(self._process.pid))
                return
        await self.ended.wait()
        raise LaunchFailed(self.exit)

    async def kill(self) -> None:
        """See `Boot.kill`."""
        if not self.ended.is_set():
            self._process.kill()
        with trio.move_on_after(KILL_TIMEOUT):
            await self.ended.wait()
            return
        raise SandboxError(
            f"process {self.pid} does not end within {KILL_TIMEOUT:g} s of SIGKILL",
            hint="a process in the sandbox hangs in the kernel; is its disk or network file system stuck?",
        )


def _reap(descriptor: int) -> None:
    """Reap a process that has ended, if it is ours: in a sandbox host, orphans are."""
    with suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOHANG)


def _open_descendants(pid: int) -> Iterator[int]:
    """Descriptors of the processes below one (``pidfd_open(2)``)."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split():
            with suppress(ProcessLookupError):
                yield os.pidfd_open(int(child))
            yield from _open_descendants(int(child))


async def launch_process(
    argv: Callable[[int], Sequence[str]],
    console: Console,
    *,
    nursery: trio.Nursery,
    context: OpenContext,
    env: Mapping[str, str],
) -> ProcessBoot:
    """Start a program that becomes a sandbox, and wait until the agent in there answers.

    What the program and its children say on standard error goes to the console. SIGKILL to the program must end all of
    it (``PR_SET_PDEATHSIG``, a process namespace), and it is sent even if this program is killed: whoever comes next
    finds a record.

    Args:
        argv: makes the command line, given the number of a descriptor that the program inherits: the agent's end of
            the link (its option ``--fd``). Nobody else may keep it open.
        console: as `Launcher.launch` was given it.
        nursery: as the launcher was given it by `open_launched`.
        context: the backend's.
        env: the program's whole environment.

    Raises:
        LaunchFailed: the program has ended first.
        BackendUnavailable: it cannot be started.

    If it raises or is cancelled, nothing is left.
    """
    link, inside = socket.socketpair()
    try:
        with inside:
            async with console.pipe(nursery) as output:
                process = spawn(
                    argv(inside.fileno()),
                    pass_fds=[inside.fileno()],
                    stderr=output,
                    env=env,
                    records=ProcessRecords(context.runtime_dir / PROCESS_FOLDER),
                )
        boot = ProcessBoot(process, link)
        with trio.CancelScope(shield=True):
            await nursery.start(boot.run)
        try:
            await boot.wait_agent()
        except BaseException:
            with trio.CancelScope(shield=True):
                await boot.kill()
            raise
    except SpawnError as error:
        link.close()
        raise BackendUnavailable(error.message, hint=error.hint, details=error.details) from error
    except BaseException:
        link.close()
        raise
    return boot
