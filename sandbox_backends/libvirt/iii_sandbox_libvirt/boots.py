"""A guest that runs under libvirt, until nothing of it is left."""

from __future__ import annotations

import logging
import os
import signal
import socket
import struct
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import trio

from iii_core.errors import SandboxError
from iii_core.sandbox.host_processes import ProcessId
from iii_core.sandbox.launcher import Boot, LaunchFailed
from iii_sandbox_libvirt.connection import DESTROY_TIMEOUT
from iii_sandbox_libvirt.shares import FAREWELL

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from iii_sandbox_gate.machinegate import MachineGate

    from iii_core.sandbox.host_processes import ProcessRecords
    from iii_sandbox_libvirt.connection import Connection
    from iii_sandbox_libvirt.places import Place
    from iii_sandbox_libvirt.render import Guest
    from iii_sandbox_libvirt.shares import Shares

LINK: Final = "link"
CONSOLE: Final = "console"
NETWORK: Final = "net"
CONNECT_TIMEOUT: Final = 5.0
FAREWELL_TIMEOUT: Final = 5.0
_PEERCRED: Final = struct.Struct("3i")
_log = logging.getLogger("iii.sandbox.libvirt")


class LibvirtBoot(Boot):
    """One run of a domain. QEMU's own process says when it has ended, and how: that works whoever its parent is."""

    def __init__(
        self,
        guest: Guest,
        connection: Connection,
        place: Place,
        link: socket.socket,
        stopped: trio.Event,
        gate: MachineGate | None,
        shares: Shares,
    ) -> None:
        self.guest = guest
        self.name = guest.name
        self.link = link
        self.new_link: socket.socket | None = None
        self.saving = trio.Lock()
        self._held = link.dup()
        self.pid = self._qemu = peer_pid(link)
        self.ended = trio.Event()
        self.exit = ""
        self._connection = connection
        self._place = place
        self._stopped = stopped
        self._gate = gate
        self._shares = shares
        self._pidfd = os.pidfd_open(self._qemu)

    async def run(self, records: ProcessRecords, *, task_status: trio.TaskStatus[None]) -> None:
        """Wait for QEMU's end and tidy up. One task must run this for as long as the driver is open."""
        identity = ProcessId.of(self._qemu)
        if identity is not None:
            records.add(identity)
        self._connection.zombies.spared.add(self._qemu)
        task_status.started()
        await trio.lowlevel.wait_readable(self._pidfd)
        self.exit = self._reap()
        self._connection.zombies.spared.discard(self._qemu)
        with trio.CancelScope(shield=True):
            await self._until_libvirt_knows()
            if self._gate is not None:
                await self._gate.end()
            await self._shares.end(patience=FAREWELL)
        if identity is not None:
            records.discard(identity)
        os.close(self._pidfd)
        for ours in (self._held, self.new_link):
            if ours is not None:
                ours.close()
        self._place.remove()
        self.ended.set()

    async def end_without_shares(self) -> None:
        """End it when the server of a mounted folder has ended: who looks into that folder now hangs."""
        await self._shares.wait_any_ended()
        with trio.move_on_after(FAREWELL):
            await self.ended.wait()  # servers end when QEMU does
            return
        _log.warning("the server of a folder mounted in %s has ended, and so does this machine", self.name)
        with suppress(SandboxError):
            await self.kill()

    @asynccontextmanager
    async def without_link(self) -> AsyncGenerator[None]:
        """Break the link, whoever has it; after the block there is `new_link`, for whoever asks first.

        QEMU connects by itself. Raises `LaunchFailed` if it does not.
        """
        with suppress(OSError):
            self._held.shutdown(socket.SHUT_RDWR)
        self._place.path(LINK).unlink(missing_ok=True)
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                await self._connect_again()

    async def _connect_again(self) -> None:
        if self.ended.is_set():
            return
        with self._place.listen(LINK) as listener:
            link = await accept(listener)
        self._held.close()
        if self.new_link is not None:
            self.new_link.close()
        self._held, self.new_link = link.dup(), link

    def take_new_link(self) -> socket.socket | None:
        """The link after a break, once."""
        link, self.new_link = self.new_link, None
        return link

    def _reap(self) -> str:
        """How QEMU ended. As its subreaper we collect it, which libvirt waits for; else all we know is that it did."""
        try:
            pid, status = os.waitpid(self._qemu, os.WNOHANG)
        except ChildProcessError:
            return "exit"
        code = os.waitstatus_to_exitcode(status) if pid else 0
        return f"signal {-code}" if code < 0 else f"exit {code}"

    async def _until_libvirt_knows(self) -> None:
        """The name is free again only then."""
        with trio.move_on_after(FAREWELL_TIMEOUT):
            await self._stopped.wait()
            return
        with trio.move_on_after(FAREWELL_TIMEOUT), suppress(SandboxError):
            await self._connection.destroy(self.name)

    async def kill(self) -> None:
        """See `Boot.kill`."""
        if self.ended.is_set():
            return
        with trio.move_on_after(DESTROY_TIMEOUT) as scope, suppress(SandboxError):
            await self._connection.destroy(self.name)
        if scope.cancelled_caught:
            with suppress(ProcessLookupError, PermissionError, OSError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        await self.ended.wait()


async def accept(listener: socket.socket) -> socket.socket:
    """QEMU connects before libvirt says that it runs, so this is a matter of moments."""
    try:
        with trio.fail_after(CONNECT_TIMEOUT):
            await trio.lowlevel.wait_readable(listener)
    except trio.TooSlowError:
        raise LaunchFailed("QEMU did not connect to its sockets") from None
    connected, _ = listener.accept()
    connected.setblocking(False)
    return connected


def peer_pid(connected: socket.socket) -> int:
    """The process at the other end of a Unix socket: who connected (unix(7), ``SO_PEERCRED``)."""
    pid, _, _ = _PEERCRED.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
    return int(pid)
