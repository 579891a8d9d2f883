"""The lifecycle that sandbox backends share: a backend gives a `Launcher`, and `open_launched` makes a driver of it.

All that the port promises about order, ids, cancellation, unasked-for ends and what is left on disk is kept here once.
What remains for a backend is to launch one sandbox, to say when it has ended, and to kill it.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from iii_core.errors import BootFailed, BootTimeout, SandboxError, SandboxNotFound, UnsupportedOperation
from iii_core.sandbox.background import open_background
from iii_core.sandbox.console import Console
from iii_core.sandbox.events import EventQueue
from iii_core.sandbox.launcher import LaunchFailed, check_spec
from iii_core.sandbox.port import Phase, SandboxDriver, SandboxEvent, SandboxState, check_supported

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from pathlib import Path

    from iii_core.sandbox.launcher import Boot, Launcher
    from iii_core.sandbox.port import SandboxSpec

KILL_TIMEOUT: Final = 10.0
CLOSE_TIMEOUT: Final = 25.0
CONSOLE_TIMEOUT: Final = 1.0
Launch: TypeAlias = "Callable[[SandboxSpec, Console], Awaitable[Boot]]"
_log = logging.getLogger("iii.sandbox")


class LaunchedSandbox:
    """One sandbox; calls are serialised here, except that `destroy` cuts off a boot and a `stop` under way."""

    def __init__(self, spec: SandboxSpec, launcher: Launcher, events: EventQueue, nursery: trio.Nursery) -> None:
        self.spec = spec
        self._launcher = launcher
        self._events = events
        self._nursery = nursery
        self._lock = trio.Lock()
        self._cut_off = trio.CancelScope()
        self._boot: Boot | None = None
        self._tidied = trio.Event()
        self._tidied.set()
        self._link: socket.socket | None = None
        self._exit: str | None = None
        self._end_wanted = False
        self._destroyed = False

    @property
    def boot(self) -> Boot | None:
        """The boot that runs, if one does."""
        return self._boot

    async def start(self, launch: Launch) -> None:
        """Boot with ``launch``, and return when there is a link."""
        async with self._lock:
            if self._destroyed:
                raise SandboxNotFound(f"sandbox {self.spec.id!r} has been destroyed", details=self.details())
            if self._boot is not None and not self._boot.ended.is_set():
                raise SandboxError(f"sandbox {self.spec.id!r} runs already", details=self.details())
            await self._tidied.wait()
            console = self._open_console()
            boot = await self._launch(launch, console)
            self._end_wanted = False
            self._boot, self._link = boot, boot.link
            self._tidied = trio.Event()
            self._nursery.start_soon(self._watch, boot, console)

    def _open_console(self) -> Console:
        try:
            return Console(self.spec.console)
        except OSError as error:
            raise SandboxError(
                f"the console of sandbox {self.spec.id!r} cannot be written: {error}",
                hint=f"is there room for {self.spec.console}, and is it a file of your own?",
                details=self.details(),
            ) from error

    async def _launch(self, launch: Launch, console: Console) -> Boot:
        self._cut_off = trio.CancelScope()
        limit = trio.move_on_after(self._launcher.boot_timeout)
        how = "it was destroyed"
        try:
            with self._cut_off, limit:
                return await launch(self.spec, console)
        except LaunchFailed as error:
            how = str(error)
            with trio.move_on_after(CONSOLE_TIMEOUT):
                await console.wait_ended()
        finally:
            if not console.taking:
                console.close()
        said = console.tail()
        if limit.cancelled_caught:
            raise BootTimeout(
                f"sandbox {self.spec.id!r} did not boot within {self._launcher.boot_timeout:g} s",
                hint=f"its console is {self.spec.console}",
                details=self.details(console=said),
            )
        raise BootFailed(
            f"sandbox {self.spec.id!r} ended while booting ({how}): {said or 'nothing on its console'}",
            hint=self._launcher.remedy(f"{how}\n{said}") or "`iii doctor` checks what this backend needs",
            details=self.details(console=said, exit=how),
        )

    async def _watch(self, boot: Boot, console: Console) -> None:
        """Tidy up when a boot ends, and tell if nobody asked for that."""
        await boot.ended.wait()
        self._exit = boot.exit
        self._boot = None
        if self._link is not None:
            self._link.close()
            self._link = None
        with trio.move_on_after(CONSOLE_TIMEOUT):
            await console.wait_ended()
        if not self._end_wanted:
            self._events.publish(SandboxEvent(id=self.spec.id, exit=boot.exit, console_tail=console.tail()))
        self._tidied.set()

    def take_link(self) -> socket.socket:
        """Our end of the link; its first taker owns it."""
        if self._link is None:
            why = "exists only while it runs" if self._boot is None else "is taken already"
            raise SandboxError(f"the link of sandbox {self.spec.id!r} {why}", details=self.details())
        link, self._link = self._link, None
        return link

    async def stop(self, grace: float) -> None:
        """Wait ``grace`` seconds for the end, then kill."""
        async with self._lock:
            boot = self._boot
            if boot is None or boot.ended.is_set():
                await self._tidied.wait()
                return
            self._end_wanted = True
            try:
                self._cut_off = trio.move_on_after(max(0.0, grace))
                with self._cut_off:
                    await boot.ended.wait()
            except trio.Cancelled:
                self._end_wanted = False  # it runs on
                raise
            await self._end()

    async def destroy(self) -> bool:
        """Kill what runs, boots or stops; False if somebody else has destroyed it meanwhile."""
        self._cut_off.cancel()
        async with self._lock:
            if self._destroyed:
                return False
            self._end_wanted = True
            await self._end()
            self._destroyed = True
            return True

    def state(self) -> SandboxState:
        """What is known now."""
        if self._boot is not None and not self._boot.ended.is_set():
            phase = Phase.RUNNING
        else:
            phase = Phase.CREATED if self._exit is None and self._boot is None else Phase.STOPPED
        return SandboxState(
            phase=phase,
            pid=self._boot.pid if self._boot is not None and phase is Phase.RUNNING else None,
            exit=None if phase is Phase.RUNNING else self._exit,
            unenforced=self._launcher.unenforced(self.spec),
            notes=self._launcher.notes(self.spec),
            single_user=self._launcher.single_user(self.spec),
            not_saveable=self._launcher.not_saveable(self.spec),
        )

    async def _end(self) -> None:
        """Kill what runs; nothing of it is left then. Also when cancelled, in bounded time."""
        boot = self._boot
        if boot is not None:
            with trio.move_on_after(2 * KILL_TIMEOUT, shield=True):
                await boot.kill()
            if not boot.ended.is_set():
                raise SandboxError(f"sandbox {self.spec.id!r} cannot be ended", details=self.details())
        with trio.CancelScope(shield=True):
            await self._tidied.wait()

    def details(self, **more: str) -> dict[str, str]:
        """Which sandbox an error is about."""
        return {"backend": self._launcher.name, "sandbox": self.spec.id, **more}


class LaunchedDriver(SandboxDriver):
    """See `SandboxDriver`; made by `open_launched`."""

    def __init__(self, launcher: Launcher, nursery: trio.Nursery) -> None:
        self.launcher = launcher
        self._nursery = nursery
        self._sandboxes: dict[str, LaunchedSandbox] = {}
        self._queue = EventQueue()

    async def create(self, spec: SandboxSpec) -> None:
        """See `SandboxDriver.create`."""
        self._check(spec)
        if spec.id in self._sandboxes:
            raise SandboxError(f"a sandbox {spec.id!r} exists already", details={"sandbox": spec.id})
        self._sandboxes[spec.id] = LaunchedSandbox(spec, self.launcher, self._queue, self._nursery)
        is_new = not spec.writable_dir.exists()
        try:
            leftover = _trash_of(spec.writable_dir)
            if leftover.exists():  # of a deletion that was cut off
                await self.launcher.remove(leftover)
            await self.launcher.prepare(spec)
        except BaseException:
            if is_new and spec.writable_dir.exists():
                with trio.move_on_after(KILL_TIMEOUT, shield=True):
                    await self.launcher.remove(spec.writable_dir)
            del self._sandboxes[spec.id]
            raise

    def _check(self, spec: SandboxSpec) -> None:
        check_spec(spec)
        if spec.root.format not in self.launcher.formats:
            raise UnsupportedOperation(
                f"the {self.launcher.name} backend boots {' and '.join(sorted(self.launcher.formats))} images, "
                f"not {spec.root.format!r}"
            )
        check_supported(spec, self.launcher.capabilities, self.launcher.name)
        self.launcher.check(spec)

    async def start(self, sandbox_id: str) -> None:
        """See `SandboxDriver.start`."""
        await self.find(sandbox_id).start(self.launcher.launch)

    async def link(self, sandbox_id: str) -> socket.socket:
        """See `SandboxDriver.link`."""
        await trio.lowlevel.checkpoint()
        return self.find(sandbox_id).take_link()

    async def stop(self, sandbox_id: str, *, grace: float) -> None:
        """See `SandboxDriver.stop`."""
        await self.find(sandbox_id).stop(grace)

    async def destroy(self, sandbox_id: str, *, keep_writable: bool) -> None:
        """See `SandboxDriver.destroy`. A boot under way is cut off, and so is the grace of a `stop`."""
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None:
            await trio.lowlevel.checkpoint()
        elif await sandbox.destroy():
            await self._forget(sandbox.spec, keep_writable=keep_writable)

    async def state(self, sandbox_id: str) -> SandboxState:
        """See `SandboxDriver.state`."""
        await trio.lowlevel.checkpoint()
        return self.find(sandbox_id).state()

    def events(self) -> trio.MemoryReceiveChannel[SandboxEvent]:
        """See `SandboxDriver.events`."""
        return self._queue.receiver

    def find(self, sandbox_id: str) -> LaunchedSandbox:
        """The sandbox of that id. Raises `SandboxNotFound`."""
        if sandbox_id not in self._sandboxes:
            raise SandboxNotFound(f"there is no sandbox {sandbox_id!r}", details={"sandbox": sandbox_id})
        return self._sandboxes[sandbox_id]

    async def close(self) -> None:
        """End all sandboxes; writable layers stay."""
        async with trio.open_nursery() as nursery:
            for sandbox_id in list(self._sandboxes):
                nursery.start_soon(self._destroy_keeping, sandbox_id)
        self._queue.close()

    async def _destroy_keeping(self, sandbox_id: str) -> None:
        try:
            await self.destroy(sandbox_id, keep_writable=True)
        except SandboxError:  # it hangs; whoever owns the processes kills what can be killed
            _log.exception("closing sandbox %s", sandbox_id)

    async def _forget(self, spec: SandboxSpec, *, keep_writable: bool) -> None:
        """Forget without waiting first, so that it is whole; a deletion that is cut off is ended by `create`."""
        trash = _trash_of(spec.writable_dir)
        if not keep_writable and spec.writable_dir.exists():
            spec.writable_dir.rename(trash)  # `create` made sure that there is none; nobody boots from half a layer
        del self._sandboxes[spec.id]
        if all(other.spec.root.path != spec.root.path for other in self._sandboxes.values()):
            await self.launcher.release(spec.root.path)
        if not keep_writable and trash.exists():
            await self.launcher.remove(trash)


def _trash_of(writable_dir: Path) -> Path:
    return writable_dir.with_name(f"{writable_dir.name}.removed")


@asynccontextmanager
async def open_launched(
    make: Callable[[trio.Nursery], Launcher], driver: type[LaunchedDriver] = LaunchedDriver
) -> AsyncGenerator[LaunchedDriver]:
    """A driver on a launcher; all its sandboxes end with the block, their writable layers stay.

    Args:
        make: makes the launcher, given a nursery whose tasks live until every sandbox has ended.
        driver: a subclass, for a backend that can do more than the port asks.
    """
    async with open_background() as nursery:
        opened = driver(make(nursery), nursery)
        try:
            yield opened
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_TIMEOUT):
                await opened.close()
