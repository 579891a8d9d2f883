"""Folders of this machine that a guest sees: one server each (virtiofsd), which ends with the guest."""

from __future__ import annotations

import json
import os
import signal
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import trio
from iii_sandbox_guest.boot import GuestMount

from iii_core.errors import SandboxError
from iii_core.sandbox.bare_python import bare_python
from iii_core.sandbox.host_processes import spawn
from iii_core.sandbox.ids import SANDBOX_IDS
from iii_core.sandbox.launcher import LaunchFailed
from iii_core.sandbox.mounts import resolved_source
from iii_sandbox_libvirt import needs
from iii_sandbox_libvirt.render import Share

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Sequence

    from iii_core.sandbox.console import Console
    from iii_core.sandbox.host_processes import HostProcess, ProcessRecords
    from iii_core.sandbox.port import Mount
    from iii_sandbox_libvirt.places import Place

SETUP_TIMEOUT: Final = 10.0
FAREWELL: Final = 1.0
_KILL_TIMEOUT: Final = 5.0


def tag_of(number: int) -> str:
    """By which a guest knows the device of its n-th mount."""
    return f"iii-{number}"


def guest_mounts(mounts: Sequence[Mount]) -> tuple[GuestMount, ...]:
    """What the guest is told."""
    return tuple(
        GuestMount(tag=tag_of(number), target=mount.target, writable=mount.writable)
        for number, mount in enumerate(mounts)
    )


class Shares:
    """The servers of one guest's folders. Made by `open_shares`."""

    def __init__(self) -> None:
        self.devices: tuple[Share, ...] = ()
        self._servers: list[HostProcess] = []

    async def start(
        self, mounts: Iterable[Mount], place: Place, console: Console, records: ProcessRecords, nursery: trio.Nursery
    ) -> None:
        """Start them all. Raises `SandboxError`."""
        for number, mount in enumerate(mounts):
            name = f"share{number}"
            async with console.pipe(nursery) as stderr:
                await self._start(mount, place, name, stderr, records, nursery)
            self.devices += (Share(tag=tag_of(number), socket=place.path(name)),)

    async def _start(
        self, mount: Mount, place: Place, name: str, stderr: int, records: ProcessRecords, nursery: trio.Nursery
    ) -> None:
        source, said = resolved_source(mount), b""
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        async with trio.lowlevel.FdStream(ours) as status:
            try:
                with place.listen(name) as listener:
                    listener.setblocking(True)
                    plan = {
                        "program": needs.VIRTIOFSD,
                        "source": str(source),
                        "writable": mount.writable,
                        "first_id": SANDBOX_IDS,
                        "listener": listener.fileno(),
                        "status": theirs,
                    }
                    server = spawn(
                        bare_python("iii_sandbox_libvirt.shareserver", json.dumps(plan)),
                        pass_fds=(listener.fileno(), theirs),
                        stderr=stderr,
                        env={},
                        records=records,
                    )
            finally:
                os.close(theirs)
            self._servers.append(server)
            with trio.CancelScope(shield=True):
                await nursery.start(server.run)
            with trio.move_on_after(SETUP_TIMEOUT):
                while piece := await status.receive_some():
                    said += piece
                if not said:
                    return
        raise SandboxError(
            f"{mount.source} cannot be mounted: {said.decode(errors='replace') or 'its server does not start'}",
            hint="`iii doctor` checks what mounts need",
            details={"path": str(mount.source)},
        )

    @asynccontextmanager
    async def blamed(self) -> AsyncGenerator[None]:
        """What fails in the block is a server's failure, if one has failed. Raises `LaunchFailed` then."""
        try:
            yield
        except SandboxError as error:
            code = 0
            with trio.move_on_after(2 * FAREWELL, shield=True):
                code = await self._failure()
            if code:
                raise LaunchFailed(f"virtiofsd, which shows a mounted folder, ended with {code}") from error
            raise

    async def _failure(self) -> int:
        """What a server has failed with, 0 if none has; waits for `FAREWELL` at most, as they end when QEMU does."""
        with trio.move_on_after(FAREWELL):
            for server in self._servers:
                await server.wait()
        for server in self._servers:
            if not server.running and (code := await server.wait()):
                return code
        return 0

    async def wait_any_ended(self) -> None:
        """Wait until a server has ended; for ever if there is none."""
        async with trio.open_nursery() as nursery:

            async def wait(server: HostProcess) -> None:
                await server.wait()
                nursery.cancel_scope.cancel()

            for server in self._servers:
                nursery.start_soon(wait, server)
            await trio.sleep_forever()

    async def end(self, *, patience: float = 0.0) -> None:
        """Wait for them to end, as they do when QEMU has; kill those that do not within ``patience`` seconds."""
        with trio.CancelScope(shield=True):
            with trio.move_on_after(patience):
                for server in self._servers:
                    await server.wait()
            for server in self._servers:
                if server.running:
                    with suppress(ProcessLookupError):
                        os.killpg(server.pid, signal.SIGKILL)  # it leads a session, and has a child
            with trio.move_on_after(_KILL_TIMEOUT):
                for server in self._servers:
                    await server.wait()


@asynccontextmanager
async def open_shares(
    mounts: Sequence[Mount], place: Place, console: Console, records: ProcessRecords, nursery: trio.Nursery
) -> AsyncGenerator[Shares]:
    """Start the servers of a guest's folders; they outlive the block if that does not fail.

    Args:
        mounts: checked.
        place: of the guest, who finds their sockets there.
        console: gets what they complain of.
        records: where they are noted until they have ended.
        nursery: of the driver.

    Raises:
        SandboxError: a folder cannot be shown.
    """
    shares = Shares()
    try:
        await shares.start(mounts, place, console, records, nursery)
        async with shares.blamed():
            yield shares
    except BaseException:
        with trio.move_on_after(_KILL_TIMEOUT, shield=True):
            await shares.end()
        raise
