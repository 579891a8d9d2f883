"""Saved states: a folder with a guest's memory, its writable disk, and a manifest of what they fit to."""

from __future__ import annotations

import os
import shutil
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final, cast

import msgspec
import trio

from iii_core.errors import SandboxError, SnapshotUnusable, UnsupportedOperation
from iii_core.project.files import open_own
from iii_core.sandbox.launcher import LaunchFailed
from iii_core.sandbox.launching import LaunchedDriver
from iii_sandbox_libvirt.boots import LibvirtBoot
from iii_sandbox_libvirt.machine import LibvirtLauncher
from iii_sandbox_libvirt.manifest import (
    DATA,
    FORMAT,
    MANIFEST,
    MEMORY,
    Machine,
    Manifest,
    check_fits,
    describe,
    read_manifest,
)
from iii_sandbox_libvirt.render import render_snapshot
from iii_sandbox_libvirt.restoring import DATA_DISK, REVISED_MEMORY, removed, replaced
from iii_sandbox_libvirt.saveimage import measure, revise, write_revised
from iii_sandbox_libvirt.sparse import copy_open, copy_sparse

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncGenerator, Generator
    from pathlib import Path

    from iii_core.sandbox.console import Console
    from iii_core.sandbox.port import SandboxSpec
    from iii_sandbox_libvirt.render import Guest

RESUME_TIMEOUT: Final = 10.0


class LibvirtDriver(LaunchedDriver):
    """A `SandboxDriver` that is also a `Snapshots` (`iii_core.sandbox.port`)."""

    @property
    def _machines(self) -> LibvirtLauncher:
        return cast("LibvirtLauncher", self.launcher)

    async def link(self, sandbox_id: str) -> socket.socket:
        """See `SandboxDriver.link`; after `save` there is another one."""
        boot = self.find(sandbox_id).boot
        link = boot.take_new_link() if isinstance(boot, LibvirtBoot) else None
        return link if link is not None else await super().link(sandbox_id)

    async def save(self, sandbox_id: str, folder: Path) -> None:
        """See `Snapshots.save`. The guest stands still for about a second."""
        sandbox = self.find(sandbox_id)
        boot = sandbox.boot
        if not isinstance(boot, LibvirtBoot) or boot.ended.is_set():
            raise SandboxError(f"sandbox {sandbox_id!r} does not run", details=sandbox.details())
        self._require_saveable(sandbox.spec)
        async with boot.saving:
            machine = await self._describe(sandbox.spec)
            with _becoming(folder) as fresh:
                await self._save(boot, sandbox.spec, fresh, machine)

    async def _save(self, boot: LibvirtBoot, spec: SandboxSpec, folder: Path, machine: Machine) -> None:
        connection = self._machines.connection
        memory, data = folder / MEMORY, folder / DATA
        try:
            async with boot.without_link(), self._standing_still(boot):
                await connection.save(boot.name, render_snapshot(memory, boot.guest.disks))
                await _blocking(partial(copy_sparse, spec.writable_dir / DATA_DISK, data))
            measured = await _blocking(partial(measure, memory))
        except LaunchFailed as error:
            raise SandboxError(f"sandbox {spec.id!r} has lost its link while it was saved: {error}") from error
        except OSError as error:
            raise SandboxError(
                f"sandbox {spec.id!r} cannot be saved to {folder.parent}: {error.strerror}", hint="is the disk full?"
            ) from error
        manifest = Manifest(format=FORMAT, machine=machine, memory=measured, data=data.stat().st_size)
        (folder / MANIFEST).write_bytes(msgspec.json.encode(manifest))

    @asynccontextmanager
    async def _standing_still(self, boot: LibvirtBoot) -> AsyncGenerator[None]:
        """Nothing in the guest happens during the block, so memory and disk are of the same moment."""
        await self._machines.connection.suspend(boot.name)
        try:
            yield
        finally:
            with (
                trio.move_on_after(RESUME_TIMEOUT, shield=True),
                suppress(SandboxError),
            ):  # it has ended: told elsewhere
                await self._machines.connection.resume(boot.name)

    async def restore(self, sandbox_id: str, folder: Path) -> None:
        """See `Snapshots.restore`."""
        sandbox = self.find(sandbox_id)
        self._require_saveable(sandbox.spec)
        await sandbox.start(partial(self._launch, folder))

    async def _launch(self, folder: Path, spec: SandboxSpec, console: Console) -> LibvirtBoot:
        manifest = await _blocking(partial(read_manifest, folder))
        check_fits(manifest.machine, await self._describe(spec), folder)
        with replaced(spec.writable_dir / DATA_DISK) as fresh:
            await _blocking(partial(_copy_disk, folder, fresh, manifest))
            fresh.replace(spec.writable_dir / DATA_DISK)
            memory = spec.writable_dir / REVISED_MEMORY
            return await self._machines.launch_by(partial(self._begin, folder, manifest, memory), spec, console)

    async def _begin(self, folder: Path, manifest: Manifest, memory: Path, guest: Guest) -> trio.Event:
        try:
            with removed(memory):  # libvirt has read all of it when it returns
                write = partial(write_revised, folder / MEMORY, memory, lambda xml: revise(xml, guest))
                measured = await _blocking(write)
                if measured != manifest.memory:
                    raise SnapshotUnusable(
                        f"the memory in {folder} is damaged: size and checksum {measured}, not {manifest.memory}",
                        hint="start it afresh, and save it again",
                    )
                return await self._machines.connection.restore(guest.name, memory)
        except SnapshotUnusable:
            raise
        except (SandboxError, OSError) as error:
            raise SnapshotUnusable(
                f"the saved state in {folder} cannot be restored: {error}", hint="start it afresh, and save it again"
            ) from error

    async def _describe(self, spec: SandboxSpec) -> Machine:
        machines = self._machines
        files = await machines.files(spec)
        versions = await machines.versions()
        return await _blocking(partial(describe, spec, files, machines.accelerator, versions))

    def _require_saveable(self, spec: SandboxSpec) -> None:
        reason = self._machines.not_saveable(spec)
        if reason is not None:
            raise UnsupportedOperation(
                f"sandbox {spec.id!r} can be neither saved nor restored: {reason}",
                hint="set `connection: embed` of the libvirt backend, and leave `mounts` out of the worker's settings",
                details={"backend": self._machines.name, "sandbox": spec.id},
            )


_blocking = trio.to_thread.run_sync


@contextmanager
def _becoming(folder: Path) -> Generator[Path]:
    """A new folder that gets its name when the block has succeeded, and is removed if not. Raises `SandboxError`."""
    fresh = folder.with_name(f".{folder.name}.saving")
    try:
        if folder.exists():
            raise FileExistsError(17, "it exists already")
        fresh.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise SandboxError(
            f"a state cannot be saved to {folder}: {error.strerror}", hint="name a folder that does not exist"
        ) from error
    try:
        yield fresh
        fresh.rename(folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _copy_disk(folder: Path, target: Path, manifest: Manifest) -> None:
    try:
        with open_own(folder / DATA) as disk:
            size = os.fstat(disk.fileno()).st_size
            if size != manifest.data:
                raise SnapshotUnusable(
                    f"the disk in {folder} is damaged: {size} bytes, not {manifest.data}",
                    hint="start it afresh, and save it again",
                )
            copy_open(disk, target)
    except OSError as error:
        raise SnapshotUnusable(
            f"the disk in {folder} cannot be copied: {error.strerror}", hint="is there room?"
        ) from error
