"""The driver: the sandbox port on top of `Sandbox` and the namespace keeper."""

from __future__ import annotations

import logging
import re
import shutil
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from iii_core.errors import BackendUnavailable, ImageError, SandboxError, SandboxNotFound, UnsupportedOperation
from iii_core.sandbox.background import open_background
from iii_core.sandbox.events import EventQueue
from iii_core.sandbox.port import SandboxDriver, check_supported
from iii_sandbox_bubblewrap.machine import Machine
from iii_sandbox_bubblewrap.policy import CAPABILITIES, CLOSE_TIMEOUT, check_limits
from iii_sandbox_bubblewrap.sandbox import Sandbox
from iii_sandbox_bubblewrap.seccomp import filter_program

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from iii_core.records import OpenContext
    from iii_core.sandbox.port import SandboxEvent, SandboxSpec, SandboxState
    from iii_sandbox_bubblewrap.policy import Settings

_log = logging.getLogger("iii.sandbox.bubblewrap")
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
_HOSTNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,63}\Z")


class BubblewrapDriver(SandboxDriver):
    """See `SandboxDriver`; made by `open_driver`."""

    def __init__(self, machine: Machine, nursery: trio.Nursery) -> None:
        self._machine = machine
        self._nursery = nursery
        self._sandboxes: dict[str, Sandbox] = {}
        self._queue = EventQueue()

    async def create(self, spec: SandboxSpec) -> None:
        """See `SandboxDriver.create`."""
        _check(spec)
        if spec.id in self._sandboxes:
            raise SandboxError(f"a sandbox {spec.id!r} exists already", details={"sandbox": spec.id})
        self._sandboxes[spec.id] = Sandbox(spec, self._machine, self._queue, self._nursery)
        try:
            leftover = _trash_of(spec.writable_dir)
            if leftover.exists():  # of a deletion that was cut off
                await self._machine.remove_tree(leftover)
            await trio.lowlevel.checkpoint()
            spec.writable_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        except BaseException:
            del self._sandboxes[spec.id]
            raise

    async def start(self, sandbox_id: str) -> None:
        """See `SandboxDriver.start`. Returns when the agent has been executed."""
        await self._find(sandbox_id).start()

    async def link(self, sandbox_id: str) -> socket.socket:
        """See `SandboxDriver.link`."""
        await trio.lowlevel.checkpoint()
        return self._find(sandbox_id).take_link()

    async def stop(self, sandbox_id: str, *, grace: float) -> None:
        """See `SandboxDriver.stop`."""
        await self._find(sandbox_id).stop(grace)

    async def destroy(self, sandbox_id: str, *, keep_writable: bool) -> None:
        """See `SandboxDriver.destroy`. A boot under way is cut off."""
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None:
            await trio.lowlevel.checkpoint()
        elif await sandbox.destroy():
            await self._forget(sandbox.spec, keep_writable=keep_writable)

    async def state(self, sandbox_id: str) -> SandboxState:
        """See `SandboxDriver.state`."""
        await trio.lowlevel.checkpoint()
        return self._find(sandbox_id).state()

    def events(self) -> trio.MemoryReceiveChannel[SandboxEvent]:
        """See `SandboxDriver.events`."""
        return self._queue.receiver

    async def close(self) -> None:
        """End all sandboxes; writable layers stay."""
        async with trio.open_nursery() as nursery:
            for sandbox_id in list(self._sandboxes):
                nursery.start_soon(self._destroy_keeping, sandbox_id)
        self._queue.close()

    async def _destroy_keeping(self, sandbox_id: str) -> None:
        try:
            await self.destroy(sandbox_id, keep_writable=True)
        except SandboxError:  # it hangs; the keeper's end, which comes next, kills what can be killed
            _log.exception("closing sandbox %s", sandbox_id)

    async def _forget(self, spec: SandboxSpec, *, keep_writable: bool) -> None:
        """Forget without waiting first, so that it is whole; a deletion that is cut off is ended by `create`."""
        trash = _trash_of(spec.writable_dir)
        if not keep_writable and spec.writable_dir.exists():
            spec.writable_dir.rename(trash)  # `create` made sure that there is none; nobody boots from half a layer
        del self._sandboxes[spec.id]
        if all(other.spec.root.path != spec.root.path for other in self._sandboxes.values()):
            await self._machine.release_image(spec.root.path)
        if not keep_writable and trash.exists():
            await self._machine.remove_tree(trash)

    def _find(self, sandbox_id: str) -> Sandbox:
        if sandbox_id not in self._sandboxes:
            raise SandboxNotFound(f"there is no sandbox {sandbox_id!r}", details={"sandbox": sandbox_id})
        return self._sandboxes[sandbox_id]


def _check(spec: SandboxSpec) -> None:
    if not _ID.match(spec.id):
        raise SandboxError(
            f"{spec.id!r} is no sandbox id", hint="1 to 63 lower-case letters, digits and hyphens, no hyphen first"
        )
    if not _HOSTNAME.match(spec.hostname):
        raise SandboxError(f"{spec.hostname!r} is no host name", hint="letters, digits, hyphens and dots")
    if spec.root.format != "squashfs":
        raise UnsupportedOperation(f"the bubblewrap backend mounts squashfs images, not {spec.root.format!r}")
    if not spec.root.path.is_file():
        raise ImageError(f"the image {spec.root.path} does not exist", hint="fetch the image again")
    check_limits(spec.limits)
    check_supported(spec, CAPABILITIES, "bubblewrap")


def _trash_of(writable_dir: Path) -> Path:
    return writable_dir.with_name(f"{writable_dir.name}.removed")


@asynccontextmanager
async def open_driver(settings: Settings, context: OpenContext) -> AsyncGenerator[SandboxDriver]:
    """Open the backend; all its sandboxes end with the block, their writable layers stay.

    Raises:
        BackendUnavailable: bwrap or the guest agent is missing, or namespaces cannot be made.
    """
    from iii_sandbox_guest import agent_path

    bwrap = shutil.which(settings.program, path=context.environ.get("PATH"))
    if bwrap is None:
        raise BackendUnavailable(f"{settings.program} is not installed", hint="apt install bubblewrap")
    program = filter_program()
    agent = agent_path()
    async with open_background() as nursery:
        machine = Machine(settings, context, nursery, agent=agent, bwrap=bwrap, program=program)
        driver = BubblewrapDriver(machine, nursery)
        try:
            yield driver
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_TIMEOUT):
                await driver.close()
