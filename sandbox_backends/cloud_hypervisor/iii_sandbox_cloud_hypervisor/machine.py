"""Launches guests: the `Launcher` of this backend."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final

import trio
from iii_sandbox_guest import limits
from iii_sandbox_guest.boot import DATA_SERIAL, ROOT_SERIAL, VSOCK_LINK, VSOCK_PORT, Needs
from iii_sandbox_guest.disk import create_data_disk
from iii_sandbox_guest.prepare import prepare_boot

from iii_core.errors import BackendUnavailable, SpawnError
from iii_core.sandbox.host_processes import spawn
from iii_core.sandbox.launcher import Launcher, LaunchFailed
from iii_sandbox_cloud_hypervisor import policy, vsock
from iii_sandbox_cloud_hypervisor.api import ApiError, open_api
from iii_sandbox_cloud_hypervisor.boots import KILL_SECONDS, VmmBoot
from iii_sandbox_cloud_hypervisor.place import Pipe, Place
from iii_sandbox_cloud_hypervisor.remedies import remedy
from iii_sandbox_cloud_hypervisor.render import Disk, Guest, misunderstood, render_argv, render_config

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from iii_sandbox_guest.prepare import BootFiles

    from iii_core.sandbox.console import Console
    from iii_core.sandbox.host_processes import ProcessRecords
    from iii_core.sandbox.port import Capability, SandboxSpec
    from iii_sandbox_cloud_hypervisor.api import Api
    from iii_sandbox_cloud_hypervisor.policy import Patience, Settings

DATA_DISK: Final = "data.img"


class CloudHypervisorLauncher(Launcher):
    """See `Launcher`."""

    name: ClassVar[str] = "cloud-hypervisor"
    capabilities: ClassVar[frozenset[Capability]] = policy.CAPABILITIES

    def __init__(
        self,
        *,
        settings: Settings,
        home: Path,
        program: Path,
        base: Path,
        records: ProcessRecords,
        nursery: trio.Nursery,
        patience: Patience,
    ) -> None:
        self.boot_timeout = patience.boot
        self._settings = settings
        self._home = home
        self._program = program
        self._base = base
        self._records = records
        self._nursery = nursery
        self._patience = patience

    def check(self, spec: SandboxSpec) -> None:
        """See `Launcher.check`."""
        limits.check_limits(spec)

    async def prepare(self, spec: SandboxSpec) -> None:
        """See `Launcher.prepare`: makes the disk that takes what the guest writes."""
        spec.writable_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        await create_data_disk(spec.writable_dir / DATA_DISK, limits.disk_mib(spec.limits) << 20)

    async def launch(self, spec: SandboxSpec, console: Console) -> VmmBoot:
        """See `Launcher.launch`."""
        needs = Needs(link=VSOCK_LINK, image_format=spec.root.format, pids=spec.limits.pids)
        files = await trio.to_thread.run_sync(
            partial(prepare_boot, self._home, needs=needs, kernel=self._settings.kernel_path)
        )
        place = Place(self._base)
        boot = await self._start_vmm(place, console)
        try:
            with boot.until_end:
                await self._boot_machine(boot, place, render_config(self._guest(place, spec, files)))
                boot.link = await vsock.connect(place.link, VSOCK_PORT, longest_pause=self._patience.retry)
                return boot
            raise LaunchFailed(boot.exit)
        except BaseException:
            boot.kill_now()
            with trio.move_on_after(KILL_SECONDS, shield=True):
                await boot.ended.wait()
            raise

    async def _start_vmm(self, place: Place, console: Console) -> VmmBoot:
        """Start the process, and what listens to it."""
        try:
            with place.listen() as api, Pipe.make() as events, Pipe.named(place.console) as lines:
                argv = render_argv(
                    self._program, api=api.fileno(), events=events.writer, seccomp=self._settings.seccomp
                )
                process = spawn(
                    argv, pass_fds=(api.fileno(), events.writer), stderr=lines.writer, env={}, records=self._records
                )
                boot = VmmBoot(process, place, self._patience)
                with trio.CancelScope(shield=True):
                    await self._nursery.start(boot.run)
                    await self._nursery.start(console.take, lines.stream())
                self._nursery.start_soon(boot.heed, events.stream())
                return boot
        except SpawnError as error:
            place.remove()
            raise BackendUnavailable(error.message, hint=error.hint) from error
        except BaseException:
            place.remove()
            raise

    async def _boot_machine(self, boot: VmmBoot, place: Place, config: dict[str, Any]) -> None:
        async with open_api(place.api, self._patience.call) as api:
            failure = await _failure_of(partial(_create_and_boot, api, config))
        if failure is None:
            return
        if failure.status is None:  # perhaps the VMM has ended, and how is what matters then
            with trio.move_on_after(self._patience.farewell):
                await boot.ended.wait()
        raise LaunchFailed(boot.exit or str(failure)) from failure

    def _guest(self, place: Place, spec: SandboxSpec, files: BootFiles) -> Guest:
        return Guest(
            vcpus=limits.vcpus(spec.limits),
            memory_mib=limits.memory_mib(spec.limits),
            kernel=files.kernel,
            initramfs=files.initramfs,
            cmdline=files.cmdline,
            disks=(
                Disk(path=spec.root.path, serial=ROOT_SERIAL, writable=False),
                Disk(path=spec.writable_dir / DATA_DISK, serial=DATA_SERIAL, writable=True),
            ),
            link=place.link,
            console=place.console,
            landlock=self._settings.landlock,
        )

    def remedy(self, said: str) -> str | None:
        """See `Launcher.remedy`."""
        return remedy(said)

    def unenforced(self, spec: SandboxSpec) -> tuple[str, ...]:
        """See `Launcher.unenforced`."""
        return limits.unenforced(spec.limits)


async def _create_and_boot(api: Api, config: dict[str, Any]) -> None:
    await api.ping()
    await api.create(config)
    wrong = misunderstood(config, (await api.info()).config)
    if wrong:
        raise LaunchFailed(f"the VMM misunderstood {', '.join(wrong)}")
    await api.boot()


async def _failure_of(act: Callable[[], Awaitable[None]]) -> ApiError | None:
    try:
        await act()
    except ApiError as error:
        return error
    return None
