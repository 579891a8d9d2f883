"""The lifecycle of one sandbox."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio

from iii_core.errors import BootFailed, BootTimeout, SandboxError, SandboxNotFound
from iii_core.sandbox.port import Phase, SandboxEvent, SandboxState
from iii_sandbox_bubblewrap import policy
from iii_sandbox_bubblewrap.console import Console
from iii_sandbox_bubblewrap.remedies import remedy

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from iii_core.sandbox.events import EventQueue
    from iii_core.sandbox.port import SandboxSpec
    from iii_sandbox_bubblewrap.boots import RunningBoot
    from iii_sandbox_bubblewrap.machine import Machine


class Sandbox:
    """One sandbox; calls are serialised here, except that `destroy` cuts off a boot under way."""

    def __init__(self, spec: SandboxSpec, machine: Machine, events: EventQueue, nursery: trio.Nursery) -> None:
        self.spec = spec
        self._machine = machine
        self._events = events
        self._nursery = nursery
        self._lock = trio.Lock()
        self._phase = Phase.CREATED
        self._boot: RunningBoot | None = None
        self._tidied = trio.Event()
        self._link: socket.socket | None = None
        self._exit: str | None = None
        self._end_wanted = False
        self._destroyed = False

    async def start(self) -> None:
        """Boot, and return when the agent runs."""
        async with self._lock:
            if self._destroyed:
                raise SandboxNotFound(f"sandbox {self.spec.id!r} has been destroyed", details=self._details())
            if self._boot is not None:
                if not self._boot.ended.is_set():
                    raise SandboxError(f"sandbox {self.spec.id!r} runs already", details=self._details())
                await self._tidied.wait()
            self._end_wanted = False
            await self._machine.keeper()
            console = Console(self.spec.console)
            self._nursery.start_soon(console.run)
            try:
                boot = await self._boot_in_groups(console)
            finally:
                os.close(console.pipe)
            await self._await_agent(boot, console)
            self._phase = Phase.RUNNING

    async def _boot_in_groups(self, console: Console) -> RunningBoot:
        groups = self._machine.cgroups.create(self.spec.id, self.spec.limits)
        try:
            boot, self._link = await self._machine.boot(self.spec, groups, console.pipe)
        except BaseException:
            self._machine.cgroups.remove(groups)
            raise
        self._boot = boot
        self._tidied = trio.Event()
        self._nursery.start_soon(self._watch, boot, groups, console)
        return boot

    async def _await_agent(self, boot: RunningBoot, console: Console) -> None:
        running = False
        try:
            with trio.move_on_after(policy.BOOT_TIMEOUT) as limit:
                running = await boot.wait_running()
        finally:
            if not running:
                with trio.move_on_after(2 * policy.KILL_TIMEOUT, shield=True):
                    await self._end(boot)
        if running:
            return
        said = console.tail()
        if limit.cancelled_caught:
            raise BootTimeout(
                f"sandbox {self.spec.id!r} did not boot within {policy.BOOT_TIMEOUT:g} s",
                hint=f"its console is {self.spec.console}",
                details=self._details(console=said),
            )
        raise BootFailed(
            f"sandbox {self.spec.id!r} ended while booting ({boot.exit}): {said or 'nothing on its console'}",
            hint=remedy(said) or "`iii doctor` checks what this backend needs",
            details=self._details(console=said, exit=boot.exit),
        )

    async def _watch(self, boot: RunningBoot, groups: tuple[Path, ...], console: Console) -> None:
        """Tidy up when a boot ends, and tell if nobody asked for that."""
        await boot.ended.wait()
        unasked = self._phase is Phase.RUNNING and not self._end_wanted
        self._exit = boot.exit
        if self._phase is Phase.RUNNING:
            self._phase = Phase.STOPPED
        if self._link is not None:
            self._link.close()
            self._link = None
        self._machine.cgroups.remove(groups)
        with trio.move_on_after(policy.CONSOLE_TIMEOUT):
            await console.wait_ended()
        if unasked:
            self._events.publish(SandboxEvent(id=self.spec.id, exit=boot.exit, console_tail=console.tail()))
        self._tidied.set()

    def take_link(self) -> socket.socket:
        """Our end of the link; its first taker owns it."""
        if self._link is None or self._phase is not Phase.RUNNING:
            why = "is taken already" if self._phase is Phase.RUNNING else "exists only while it runs"
            raise SandboxError(f"the link of sandbox {self.spec.id!r} {why}", details=self._details())
        link, self._link = self._link, None
        return link

    async def stop(self, grace: float) -> None:
        """Wait ``grace`` seconds for the end, then kill."""
        async with self._lock:
            boot = self._boot
            if boot is None or boot.ended.is_set():
                return
            self._end_wanted = True
            try:
                with trio.move_on_after(max(0.0, grace)):
                    await boot.ended.wait()
            except trio.Cancelled:
                self._end_wanted = False  # it runs on
                raise
            await self._end(boot)

    async def destroy(self) -> bool:
        """Kill what runs, also a boot under way; False if somebody else has destroyed it meanwhile."""
        self._end_wanted = True
        if self._boot is not None:
            await self._end(self._boot)
        async with self._lock:
            if self._destroyed:
                return False
            if self._boot is not None:
                await self._end(self._boot)
            self._destroyed = True
            return True

    def state(self) -> SandboxState:
        """What is known now."""
        running = self._phase is Phase.RUNNING
        return SandboxState(
            phase=self._phase,
            pid=self._boot.launcher if running and self._boot is not None else None,
            exit=None if running else self._exit,
            unenforced=self._machine.unenforced(self.spec),
            notes=self._machine.notes(),
        )

    async def _end(self, boot: RunningBoot) -> None:
        """Kill a boot; nothing of it is left then. Also when cancelled, in bounded time."""
        await self._machine.kill(boot)
        with trio.CancelScope(shield=True):
            await self._tidied.wait()

    def _details(self, **more: str) -> dict[str, str]:
        return {"backend": "bubblewrap", "sandbox": self.spec.id, **more}
