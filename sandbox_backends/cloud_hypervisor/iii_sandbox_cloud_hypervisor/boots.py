"""A VMM that runs, until nothing of it is left."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from iii_core.sandbox.launcher import Boot
from iii_sandbox_cloud_hypervisor.api import ApiError, open_api
from iii_sandbox_cloud_hypervisor.events import EventParser

if TYPE_CHECKING:
    from iii_core.sandbox.host_processes import HostProcess
    from iii_sandbox_cloud_hypervisor.api import Api
    from iii_sandbox_cloud_hypervisor.place import Place
    from iii_sandbox_cloud_hypervisor.policy import Patience

REBOOTED: Final = "reboot"
KILL_SECONDS: Final = 5.0


class VmmBoot(Boot):
    """One VMM process with one machine.

    Attributes:
        until_end: cancelled when the VMM has ended; what is done for the boot meanwhile is done in this scope.
    """

    def __init__(self, process: HostProcess, place: Place, patience: Patience) -> None:
        self.pid = process.pid
        self.ended = trio.Event()
        self.exit = ""
        self.until_end = trio.CancelScope()
        self._process = process
        self._place = place
        self._patience = patience
        self._rebooted = False

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Wait for the VMM's end and tidy up. One task must run this for as long as the driver is open."""
        task_status.started()
        try:
            code = await self._process.run()
        finally:
            self._place.remove()
        self.exit = f"signal {-code}" if code < 0 else f"exit {code}"
        if self._rebooted:
            self.exit = REBOOTED
        self.ended.set()
        self.until_end.cancel()

    async def heed(self, events: trio.abc.ReceiveStream) -> None:
        """Take the VMM's events (the stream is ours to close), until there are no more.

        A guest that reboots (its kernel does so when it panics) is ended: the VMM has no option for that, and what was
        told to the agent is lost.
        """
        parser = EventParser()
        with suppress(trio.BrokenResourceError):
            async with events:
                while data := await events.receive_some():
                    if any(event.is_reboot for event in parser.feed(bytes(data))):
                        self._rebooted = True
                        self.kill_now()

    async def kill(self) -> None:
        """See `Boot.kill`: asks the guest, then the VMM, then the kernel, each for a while."""
        if self.ended.is_set():
            return
        async with open_api(self._place.api, self._patience.shutdown) as api:
            for attempt in (self._by_button, self._by_shutdown):
                if not self.ended.is_set():
                    with suppress(ApiError):
                        await attempt(api)
        self.kill_now()
        await self.ended.wait()

    def kill_now(self) -> None:
        """SIGKILL; `ended` is set a moment later."""
        self._process.kill()

    async def _by_button(self, api: Api) -> None:
        await api.press_power_button()
        with trio.move_on_after(self._patience.button):  # the guest's time, not that of the call
            await self.ended.wait()

    async def _by_shutdown(self, api: Api) -> None:
        with suppress(ApiError):
            await api.shutdown_machine()
        await api.shutdown()
        with trio.move_on_after(self._patience.shutdown):
            await self.ended.wait()
