"""The driver's side of a virtual machine's gate: starts the process, hands it QEMU's connection, ends it."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import trio

from iii_core.sandbox.bare_python import bare_python
from iii_core.sandbox.host_processes import spawn
from iii_core.sandbox.launcher import LaunchFailed

if TYPE_CHECKING:
    from iii_core.sandbox.host_processes import HostProcess, ProcessRecords
    from iii_sandbox_gate.plan import GatePlan

STARTUP_TIMEOUT: Final = 25.0
"""Seconds; its own steps are bounded, and say more."""
END_TIMEOUT: Final = 5.0
NOBODY: Final = (65534, 65534)
_MAX_MESSAGE: Final = 4096
_LOST: Final = b"iii: this sandbox has no network any more: the process that is its gate has ended\n"


class MachineGate:
    """A running gate; made by `start_machine_gate`. It ends with this process, however that ends."""

    def __init__(self, process: HostProcess, control: socket.socket) -> None:
        self._process = process
        self._control = control
        self._is_wanted = True

    @property
    def pid(self) -> int:
        """The process, which lives in the gate's network namespace."""
        return self._process.pid

    def connect(self, stream: socket.socket) -> None:
        """Hand over QEMU's connection (``-netdev stream``), which is the gate's to close from now on."""
        with stream:
            socket.send_fds(self._control, [b"1"], [stream.fileno()])

    async def end(self) -> None:
        """End it; returns when nothing of it is left. Idempotent; takes `END_TIMEOUT` at most, also if cancelled."""
        self._is_wanted = False
        self._control.close()
        with trio.move_on_after(END_TIMEOUT, shield=True):
            await self._process.wait()
            return
        self._process.end()

    async def watch(self, console: int) -> None:
        """Wait for its end, and say so on the console, a descriptor to be closed here, if nobody asked for it."""
        try:
            await self._process.wait()
            if self._is_wanted:
                with suppress(OSError):  # in a thread: who empties a full pipe may be a task of ours
                    await trio.to_thread.run_sync(os.write, console, _LOST)
        finally:
            os.close(console)


async def start_machine_gate(
    plan: GatePlan,
    *,
    nursery: trio.Nursery,
    console: int,
    records: ProcessRecords | None = None,
    user: tuple[int, int] = NOBODY,
) -> MachineGate:
    """Make the gate of a virtual machine; returns when its rules are set and its uplink is up.

    Args:
        plan: made for a machine.
        nursery: where its process is waited for.
        console: descriptor for what it says, and for what is said if it ends before it is told to.
        records: where the process is noted.
        user: whom it becomes, if we are root, before it carries the first frame: user and group id. Best is one that
            has nothing but this machine.

    Raises:
        LaunchFailed: it cannot be made; then nothing of it is left, as when this is cancelled.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    told = json.dumps({**asdict(plan), "user": user})
    with theirs:
        try:
            process = spawn(
                bare_python("iii_sandbox_gate.service", str(theirs.fileno()), told),
                pass_fds=(theirs.fileno(),),
                stderr=console,
                env={"PATH": os.defpath},
                records=records,
            )
        except BaseException:
            ours.close()
            raise
    nursery.start_soon(process.run)
    gate = MachineGate(process, ours)
    try:
        problem = await _greeting(ours)
        if problem is None:
            nursery.start_soon(gate.watch, os.dup(console))
    except BaseException:
        with trio.move_on_after(END_TIMEOUT, shield=True):
            await gate.end()
        raise
    if problem is not None:
        await gate.end()
        raise LaunchFailed(f"its network cannot be made: {problem}")
    return gate


async def _greeting(control: socket.socket) -> str | None:
    """What went wrong, if anything did."""
    with trio.socket.from_stdlib_socket(control.dup()) as reader, trio.move_on_after(STARTUP_TIMEOUT):
        try:
            data = await reader.recv(_MAX_MESSAGE)
        except OSError as error:
            return str(error)
        return json.loads(data).get("error") if data else "its process has ended"
    return f"no answer within {STARTUP_TIMEOUT:g} s"
