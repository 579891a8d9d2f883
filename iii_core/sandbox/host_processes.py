"""Starting processes inside the sandbox host, and never losing track of one.

Two rules of Linux shape this module. ``PR_SET_PDEATHSIG`` fires when the *thread* that forked ends (``prctl(2)``), so
every spawn happens in the calling thread, never in a worker thread as ``trio.open_process`` does it. And a pid alone
is a bad name for a process, because it is reused: records hold the start time beside it (``proc_pid_stat(5)``, field
22).
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from iii_core.errors import SpawnError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_KILL_WAIT_MS = 5000
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_RECORD = re.compile(r"(?P<pid>[1-9][0-9]{0,9})\.(?P<started>[0-9]{1,19})\.(?P<boot>[0-9a-f-]{36})")


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process, safe against reuse of its number. ``started`` is in clock ticks since boot."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The process that has this number now, or None; a zombie counts as none."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return None
        fields = stat[stat.rindex(b")") + 2 :].split()  # the name before may hold spaces and brackets
        return None if fields[0] in (b"Z", b"X") else cls(pid, int(fields[19]))

    def alive(self) -> bool:
        """Whether this very process still runs."""
        return ProcessId.of(self.pid) == self

    def kill(self) -> bool:
        """SIGKILL it and wait until it is gone, at most 5 s. False if it is still there (or not ours to kill)."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            if not self.alive():  # asked after the descriptor was taken: from here on it names this process alone
                return True
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            return bool(poller.poll(_KILL_WAIT_MS))
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        finally:
            os.close(descriptor)


class ProcessRecords:
    """One empty file per process in a private folder, ``<pid>.<start time>.<boot id>``. Survives SIGKILL of its writer.

    Start times count from the machine's boot, so a record of another boot (``random(4)``, ``boot_id``) names nobody.
    Sweeping leaves alone what is no record.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._boot = _BOOT_ID.read_text(encoding="ascii").strip()

    def add(self, process: ProcessId) -> None:
        """Note a process that must not outlive us."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path(process).touch(mode=0o600)

    def discard(self, process: ProcessId) -> None:
        """Forget a process that has ended."""
        self._path(process).unlink(missing_ok=True)

    def sweep(self) -> list[ProcessId]:
        """Kill every recorded process that still runs; returns those. Blocks for 5 s at most for each stubborn one."""
        killed: list[ProcessId] = []
        for path, process, boot in self._recorded():
            if boot == self._boot and process.alive():
                killed.append(process)
                if not process.kill():
                    continue
            path.unlink(missing_ok=True)
        return killed

    def _recorded(self) -> Iterator[tuple[Path, ProcessId, str]]:
        with contextlib.suppress(FileNotFoundError):
            for path in sorted(self._folder.iterdir()):
                found = _RECORD.fullmatch(path.name)
                if found and path.is_file() and not path.is_symlink():
                    yield path, ProcessId(int(found["pid"]), int(found["started"])), found["boot"]

    def _path(self, process: ProcessId) -> Path:
        return self._folder / f"{process.pid}.{process.started}.{self._boot}"


class HostProcess:
    """A child process of this one. Made by `spawn`."""

    def __init__(self, popen: subprocess.Popen[bytes], descriptor: int, records: ProcessRecords | None) -> None:
        self._popen = popen
        self._descriptor = descriptor
        self._records = records
        self._ended = trio.Event()
        self.identity = ProcessId.of(popen.pid)
        if records is not None and self.identity is not None:
            records.add(self.identity)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether `run` has not reaped it yet."""
        return not self._ended.is_set()

    async def run(self, *, task_status: trio.TaskStatus[HostProcess] = trio.TASK_STATUS_IGNORED) -> int:
        """Wait for the end and reap; the return code as ``subprocess`` has it. One task must run this.

        Cancelling kills the process and waits for its end, which SIGKILL makes short.
        """
        task_status.started(self)
        try:
            await trio.lowlevel.wait_readable(self._descriptor)
        finally:
            self.end()
        return self._popen.returncode

    def end(self) -> None:
        """Kill it if it still runs, and reap it; blocks for as long as SIGKILL takes. Idempotent."""
        if self._ended.is_set():
            return
        self.kill()
        self._popen.wait()
        os.close(self._descriptor)
        if self._records is not None and self.identity is not None:
            self._records.discard(self.identity)
        self._ended.set()

    async def wait(self) -> int:
        """Wait until `run` has reaped it; any number of tasks may."""
        await self._ended.wait()
        return self._popen.returncode

    def kill(self) -> None:
        """SIGKILL; does nothing to a process that has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._popen.kill()


def spawn(
    argv: Sequence[str],
    *,
    pass_fds: Sequence[int] = (),
    stderr: int = subprocess.DEVNULL,
    env: Mapping[str, str] | None = None,
    records: ProcessRecords | None = None,
) -> HostProcess:
    """Start a program in the calling thread, without standard input and output, in a session of its own.

    Args:
        argv: program and arguments; the program is searched for in ``PATH``.
        pass_fds: descriptors it inherits under the same numbers.
        stderr: descriptor for its messages.
        env: its environment; None means ours.
        records: where to note it until it has ended.

    Raises:
        SpawnError: the program cannot be started.
    """
    try:
        popen = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=pass_fds,
            env=None if env is None else dict(env),
            start_new_session=True,
        )
    except OSError as error:
        raise SpawnError(
            f"cannot start {argv[0]}: {error.strerror}",
            hint="is it installed, and on PATH?",
            details={"program": argv[0]},
        ) from error
    return HostProcess(popen, os.pidfd_open(popen.pid), records)
