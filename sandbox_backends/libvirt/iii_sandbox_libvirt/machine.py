"""Launches guests: the `Launcher` of this backend."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final, TypeAlias

import trio
from iii_sandbox_gate.addresses import MACHINE, MACHINE_GATEWAY, MACHINE_PREFIX, NAMESERVER
from iii_sandbox_gate.machinegate import END_TIMEOUT, NOBODY, start_machine_gate
from iii_sandbox_gate.plan import check_egress, egress_notes, plan_gate
from iii_sandbox_guest import limits
from iii_sandbox_guest.boot import DATA_SERIAL, LINK_PORT, ROOT_SERIAL, Needs, Network
from iii_sandbox_guest.disk import create_data_disk
from iii_sandbox_guest.prepare import prepare_boot

from iii_core.sandbox.ids import SANDBOX_IDS
from iii_core.sandbox.launcher import Launcher
from iii_core.sandbox.mounts import check_mounts
from iii_core.sandbox.port import check_supported
from iii_sandbox_libvirt import policy
from iii_sandbox_libvirt.boots import CONSOLE, LINK, NETWORK, LibvirtBoot, accept
from iii_sandbox_libvirt.connection import DESTROY_TIMEOUT
from iii_sandbox_libvirt.needs import find_lacks
from iii_sandbox_libvirt.places import ROOTS_FOLDER
from iii_sandbox_libvirt.render import Disk, Guest, render
from iii_sandbox_libvirt.restoring import DATA_DISK, undo_cut_off
from iii_sandbox_libvirt.shares import guest_mounts, open_shares

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from pathlib import Path

    from iii_sandbox_gate.machinegate import MachineGate
    from iii_sandbox_guest.prepare import BootFiles

    from iii_core.records import OpenContext
    from iii_core.sandbox.console import Console
    from iii_core.sandbox.host_processes import ProcessRecords
    from iii_core.sandbox.port import Capability, Egress, SandboxSpec
    from iii_sandbox_libvirt.connection import Connection
    from iii_sandbox_libvirt.places import Place, Places
    from iii_sandbox_libvirt.policy import Accelerator, Settings
    from iii_sandbox_libvirt.shares import Shares

MOUNT_REMEDY: Final = "may this user make namespaces, and is /proc mounted without parts that are covered?"
Begin: TypeAlias = "Callable[[Guest], Awaitable[trio.Event]]"


class LibvirtLauncher(Launcher):
    """See `Launcher`."""

    name: ClassVar[str] = "libvirt"
    capabilities: ClassVar[frozenset[Capability]] = policy.ALL_CAPABILITIES  # `check` knows what this machine has
    boot_timeout: float = 60.0

    def __init__(
        self,
        *,
        settings: Settings,
        context: OpenContext,
        emulator: Path,
        accelerator: Accelerator,
        connection: Connection,
        places: Places,
        records: ProcessRecords,
        nursery: trio.Nursery,
    ) -> None:
        self.embedded = settings.connection == policy.EMBEDDED
        self._settings = settings
        self._context = context
        self._environ = context.environ
        self._emulator = emulator
        self.accelerator = accelerator
        self.connection = connection
        self._places = places
        self._records = records
        self._nursery = nursery
        self._emulator_version: str | None = None

    def check(self, spec: SandboxSpec) -> None:
        """See `Launcher.check`."""
        limits.check_limits(spec)
        if spec.egress is not None:
            check_egress(spec.egress, self.name, self._environ)
        if spec.mounts:
            lacks = find_lacks(self._environ)
            check_supported(spec, self.capabilities - lacks.keys(), self.name, lacks)
        self._check_mounts(spec)

    def _check_mounts(self, spec: SandboxSpec) -> None:
        context = self._context
        private = (context.home, context.state_dir, context.runtime_dir, spec.writable_dir, spec.console, ROOTS_FOLDER)
        check_mounts(spec.mounts, private)

    async def prepare(self, spec: SandboxSpec) -> None:
        """See `Launcher.prepare`: makes the disk that takes what the guest writes."""
        spec.writable_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        await trio.to_thread.run_sync(undo_cut_off, spec.writable_dir)
        self._places.let_in(spec.writable_dir)
        await create_data_disk(spec.writable_dir / DATA_DISK, limits.disk_mib(spec.limits) << 20)

    async def launch(self, spec: SandboxSpec, console: Console) -> LibvirtBoot:
        """See `Launcher.launch`."""
        return await self.launch_by(self._create, spec, console)

    async def launch_by(self, begin: Begin, spec: SandboxSpec, console: Console) -> LibvirtBoot:
        """As `launch`; ``begin`` makes libvirt begin the domain."""
        self._check_mounts(spec)  # again: links may lead elsewhere by now
        files = await self.files(spec)
        place = self._places.make(spec.id)
        try:
            async with (
                self._gate(spec, place, console) as gate,
                open_shares(spec.mounts, place, console, self._records, self._nursery) as shares,
            ):
                guest = self._guest(place, spec, files, shares)
                return await self._launch_in(place, begin, guest, console, gate, shares)
        except BaseException:
            place.remove()
            raise

    @asynccontextmanager
    async def _gate(self, spec: SandboxSpec, place: Place, console: Console) -> AsyncGenerator[MachineGate | None]:
        """The way out of a sandbox that has one; it outlives the block if that does not fail."""
        if spec.egress is None:
            yield None
            return
        plan = plan_gate(spec.egress, self._environ, machine=True)
        user = NOBODY if place.user is None else (place.user.uid, place.user.gid)
        async with console.pipe(self._nursery) as pipe:
            gate = await start_machine_gate(plan, nursery=self._nursery, console=pipe, records=self._records, user=user)
        try:
            yield gate
        except BaseException:
            with trio.move_on_after(END_TIMEOUT, shield=True):
                await gate.end()
            raise

    async def files(self, spec: SandboxSpec) -> BootFiles:
        """What a sandbox boots."""
        needs = Needs(
            image_format=spec.root.format,
            pids=spec.limits.pids,
            network=_network(spec.egress),
            mounts=guest_mounts(spec.mounts),
        )
        prepare = partial(prepare_boot, self._context.home, needs=needs, kernel=self._settings.kernel_path)
        return await trio.to_thread.run_sync(prepare)

    async def versions(self) -> tuple[str, str]:
        """QEMU's, as it says it, and libvirt's. (libvirt would try every emulator there is before it tells QEMU's.)"""
        if self._emulator_version is None:
            done = await trio.run_process([self._emulator, "--version"], capture_stdout=True, stdin=subprocess.DEVNULL)
            self._emulator_version = done.stdout.decode(errors="replace").partition("\n")[0]
        return self._emulator_version, await self.connection.version()

    async def _create(self, guest: Guest) -> trio.Event:
        return await self.connection.create(guest.name, render(guest), autodestroy=not self.embedded)

    async def _launch_in(
        self, place: Place, begin: Begin, guest: Guest, console: Console, gate: MachineGate | None, shares: Shares
    ) -> LibvirtBoot:
        with ExitStack() as listening, ExitStack() as connected:
            names = (LINK, CONSOLE, *(() if gate is None else (NETWORK,)))
            listeners = [listening.enter_context(place.listen(name)) for name in names]
            stopped = await begin(guest)
            try:
                link, talking, *card = [connected.enter_context(await accept(listener)) for listener in listeners]
                if gate is not None:
                    gate.connect(card[0])
                boot = LibvirtBoot(guest, self.connection, place, link, stopped, gate, shares)
            except BaseException:
                with trio.move_on_after(DESTROY_TIMEOUT, shield=True):
                    await self.connection.destroy(guest.name)
                raise
            connected.pop_all()
        self._nursery.start_soon(console.take, trio.SocketStream(trio.socket.from_stdlib_socket(talking)))
        with trio.CancelScope(shield=True):
            await self._nursery.start(boot.run, self._records)
        if shares.devices:
            self._nursery.start_soon(boot.end_without_shares)
        return boot

    def _guest(self, place: Place, spec: SandboxSpec, files: BootFiles, shares: Shares) -> Guest:
        data = spec.writable_dir / DATA_DISK
        place.give(data)
        return Guest(
            name=self._places.domain(spec.id),
            emulator=self._emulator,
            accelerator=self.accelerator,
            vcpus=limits.vcpus(spec.limits),
            memory_mib=limits.memory_mib(spec.limits),
            kernel=place.show("kernel", files.kernel),
            initramfs=place.show("initramfs", files.initramfs),
            cmdline=files.cmdline,
            disks=(
                Disk(path=place.show("root", spec.root.path), serial=ROOT_SERIAL, writable=False),
                Disk(path=place.show("data", data), serial=DATA_SERIAL, writable=True),
            ),
            link=place.path(LINK),
            port=LINK_PORT,
            console=place.path(CONSOLE),
            network=place.path(NETWORK) if spec.egress is not None else None,
            shares=shares.devices,
            owner=(place.user.uid, place.user.gid) if place.lease is not None and place.user is not None else None,
            keep_owners=place.user is not None and not place.binds,
        )

    def unenforced(self, spec: SandboxSpec) -> tuple[str, ...]:
        """See `Launcher.unenforced`."""
        return limits.unenforced(spec.limits)

    def not_saveable(self, spec: SandboxSpec) -> str | None:
        """See `Launcher.not_saveable`: a daemon would not end restored domains with us (libvirt 9 has no such flag)."""
        if not self.embedded:
            return "snapshots need libvirt embedded (`connection: embed`)"
        return "it has mounted folders, whose state cannot be saved" if spec.mounts else None

    def notes(self, spec: SandboxSpec) -> tuple[str, ...]:
        """See `Launcher.notes`."""
        found = list(egress_notes(spec.egress))
        if self.accelerator is policy.Accelerator.TCG:
            found.append("the guest's processor is emulated (TCG), which is slow: KVM does not work here")
        if any(mount.writable for mount in spec.mounts):
            found.append(
                f"root of the sandbox is user id {SANDBOX_IDS} of this machine: it may write to a mounted folder only "
                "where that id, or everybody, may"
            )
        return tuple(found)

    def remedy(self, said: str) -> str | None:
        """See `Launcher.remedy`."""
        return MOUNT_REMEDY if "virtiofsd" in said else None


def _network(egress: Egress | None) -> Network | None:
    """How a guest behind a gate sets up its card."""
    if egress is None:
        return None
    return Network(
        address=MACHINE,
        prefix=MACHINE_PREFIX,
        gateway=MACHINE_GATEWAY,
        nameservers=egress.nameservers or (NAMESERVER,),
    )
