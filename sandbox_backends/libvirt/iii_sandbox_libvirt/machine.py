"""Launches guests: the `Launcher` of this backend."""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final

import trio
from iii_sandbox_guest.boot import DATA_SERIAL, LINK_PORT, ROOT_SERIAL, Needs
from iii_sandbox_guest.disk import create_data_disk
from iii_sandbox_guest.prepare import prepare_boot

from iii_core.sandbox.launcher import Launcher, LaunchFailed
from iii_sandbox_libvirt import policy
from iii_sandbox_libvirt.boots import LibvirtBoot
from iii_sandbox_libvirt.connection import DESTROY_TIMEOUT
from iii_sandbox_libvirt.render import Disk, Guest, render

if TYPE_CHECKING:
    from pathlib import Path

    from iii_sandbox_guest.prepare import BootFiles

    from iii_core.sandbox.console import Console
    from iii_core.sandbox.host_processes import ProcessRecords
    from iii_core.sandbox.port import Capability, SandboxSpec
    from iii_sandbox_libvirt.connection import Connection
    from iii_sandbox_libvirt.places import Place, Places
    from iii_sandbox_libvirt.policy import Accelerator, Settings

DATA_DISK: Final = "data.img"
CONNECT_TIMEOUT: Final = 5.0


class LibvirtLauncher(Launcher):
    """See `Launcher`."""

    name: ClassVar[str] = "libvirt"
    capabilities: ClassVar[frozenset[Capability]] = policy.CAPABILITIES
    boot_timeout: float = 60.0

    def __init__(
        self,
        *,
        settings: Settings,
        home: Path,
        emulator: Path,
        accelerator: Accelerator,
        connection: Connection,
        places: Places,
        records: ProcessRecords,
        nursery: trio.Nursery,
    ) -> None:
        self._settings = settings
        self._home = home
        self._emulator = emulator
        self._accelerator = accelerator
        self._connection = connection
        self._places = places
        self._records = records
        self._nursery = nursery

    def check(self, spec: SandboxSpec) -> None:
        """See `Launcher.check`."""
        policy.check_limits(spec)

    async def prepare(self, spec: SandboxSpec) -> None:
        """See `Launcher.prepare`: makes the disk that takes what the guest writes."""
        spec.writable_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._places.let_in(spec.writable_dir)
        await create_data_disk(spec.writable_dir / DATA_DISK, policy.disk_mib(spec.limits) << 20)

    async def launch(self, spec: SandboxSpec, console: Console) -> LibvirtBoot:
        """See `Launcher.launch`."""
        needs = Needs(image_format=spec.root.format, pids=spec.limits.pids)
        files = await trio.to_thread.run_sync(
            partial(prepare_boot, self._home, needs=needs, kernel=self._settings.kernel_path)
        )
        place = self._places.make(spec.id)
        try:
            return await self._launch_in(place, spec, files, console)
        except BaseException:
            place.remove()
            raise

    async def _launch_in(self, place: Place, spec: SandboxSpec, files: BootFiles, console: Console) -> LibvirtBoot:
        with place.listen("link") as link_listener, place.listen("console") as console_listener:
            guest = self._guest(place, spec, files)
            stopped = await self._connection.create(
                guest.name, render(guest), autodestroy=self._settings.connection != policy.EMBEDDED
            )
            try:
                link = await _accept(link_listener)
                try:
                    talking = await _accept(console_listener)
                    boot = LibvirtBoot(guest.name, self._connection, place, link, stopped)
                except BaseException:
                    link.close()
                    raise
            except BaseException:
                with trio.move_on_after(DESTROY_TIMEOUT, shield=True):
                    await self._connection.destroy(guest.name)
                raise
        self._nursery.start_soon(console.take, trio.SocketStream(trio.socket.from_stdlib_socket(talking)))
        with trio.CancelScope(shield=True):
            await self._nursery.start(boot.run, self._records)
        return boot

    def _guest(self, place: Place, spec: SandboxSpec, files: BootFiles) -> Guest:
        data = spec.writable_dir / DATA_DISK
        place.give(data)
        return Guest(
            name=self._places.domain(spec.id),
            emulator=self._emulator,
            accelerator=self._accelerator,
            vcpus=policy.vcpus(spec.limits),
            memory_mib=policy.memory_mib(spec.limits),
            kernel=place.show("kernel", files.kernel),
            initramfs=place.show("initramfs", files.initramfs),
            cmdline=files.cmdline,
            disks=(
                Disk(path=place.show("root", spec.root.path), serial=ROOT_SERIAL, writable=False),
                Disk(path=place.show("data", data), serial=DATA_SERIAL, writable=True),
            ),
            link=place.path("link"),
            port=LINK_PORT,
            console=place.path("console"),
            keep_owners=place.user is not None and not place.binds,
        )

    def unenforced(self, spec: SandboxSpec) -> tuple[str, ...]:
        """See `Launcher.unenforced`."""
        return policy.unenforced(spec.limits)

    def notes(self, spec: SandboxSpec) -> tuple[str, ...]:
        """See `Launcher.notes`."""
        if self._accelerator is policy.Accelerator.TCG:
            return ("the guest's processor is emulated (TCG), which is slow: KVM does not work here",)
        return ()


async def _accept(listener: socket.socket) -> socket.socket:
    """QEMU connects before libvirt says that it runs, so this is a matter of moments."""
    try:
        with trio.fail_after(CONNECT_TIMEOUT):
            await trio.lowlevel.wait_readable(listener)
    except trio.TooSlowError:
        raise LaunchFailed("QEMU did not connect to its sockets") from None
    connected, _ = listener.accept()
    connected.setblocking(False)
    return connected
