"""What a saved state fits to: everything that a guest has in its memory and would miss."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from iii_sandbox_guest import limits

from iii_core.errors import SnapshotUnusable
from iii_core.project.files import read_own
from iii_sandbox_libvirt.policy import Accelerator
from iii_sandbox_libvirt.saveimage import measure

if TYPE_CHECKING:
    from iii_sandbox_guest.prepare import BootFiles

    from iii_core.sandbox.port import SandboxSpec

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
MEMORY: Final = "memory"
DATA: Final = "data.img"
_TABLES: Final = 1 << 20
_LIMIT: Final = 1 << 20
_CPUINFO: Final = Path("/proc/cpuinfo")


class Machine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What must be the same when a state is restored.

    Attributes:
        image: digest of the root image's manifest.
        root: fingerprint of the root image as a file: one digest may be built into files of another layout, and the
            guest has parts of this one in its memory.
        kernel, initramfs: checksums.
        processor: the host's, where guests see it.
        qemu, libvirt: versions.
    """

    image: str
    root: str
    kernel: str
    initramfs: str
    cmdline: str
    vcpus: int
    memory_mib: int
    accelerator: Accelerator
    processor: str
    qemu: str
    libvirt: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``manifest.json`` of a saved state. ``memory``: size and checksum of the file; ``data``: size of the disk."""

    format: int
    machine: Machine
    memory: tuple[int, int]
    data: int


def describe(spec: SandboxSpec, files: BootFiles, accelerator: Accelerator, versions: tuple[str, str]) -> Machine:
    """The machine that a sandbox boots; reads its files. ``versions`` are QEMU's and libvirt's."""
    qemu, libvirt = versions
    return Machine(
        image=spec.root.digest,
        root=_fingerprint(spec.root.path),
        kernel=_checksum(files.kernel),
        initramfs=_checksum(files.initramfs),
        cmdline=files.cmdline,
        vcpus=limits.vcpus(spec.limits),
        memory_mib=limits.memory_mib(spec.limits),
        accelerator=accelerator,
        processor=_processor() if accelerator is Accelerator.KVM else "",
        qemu=qemu,
        libvirt=libvirt,
    )


def read_manifest(folder: Path) -> Manifest:
    """Raises `SnapshotUnusable`."""
    try:
        manifest = msgspec.json.decode(read_own(folder / MANIFEST, _LIMIT), type=Manifest)
    except (OSError, msgspec.MsgspecError) as error:
        raise SnapshotUnusable(
            f"there is no saved state in {folder}, or it is damaged: {error}",
            hint="start it afresh, and save it again",
            details={"folder": str(folder)},
        ) from error
    if manifest.format != FORMAT:
        raise SnapshotUnusable(
            f"the saved state in {folder} has format {manifest.format}, known is {FORMAT}",
            hint="start it afresh, and save it again",
        )
    return manifest


def check_fits(saved: Machine, now: Machine, folder: Path) -> None:
    """Raise `SnapshotUnusable` naming what differs."""
    before, after = msgspec.structs.asdict(saved), msgspec.structs.asdict(now)
    differing = [name for name in before if before[name] != after[name]]
    if differing:
        first = differing[0]
        raise SnapshotUnusable(
            f"the saved state in {folder} is of another machine: its {' and '.join(differing)} differ "
            f"({first}: {before[first]}, now {after[first]})",
            hint="start it afresh, and save it again",
            details={"folder": str(folder), "differing": differing},
        )


def _checksum(path: Path) -> str:
    size, checksum = measure(path)
    return f"{size}:{checksum:08x}"


def _fingerprint(root: Path) -> str:
    """Of a squashfs: its size, superblock and, at its end, tables of all that it holds (squashfs.rst of the kernel)."""
    size = root.stat().st_size
    with root.open("rb") as file:
        head = file.read(4096)
        file.seek(max(0, size - _TABLES))
        return f"{size}:{hashlib.sha256(head + file.read()).hexdigest()}"


def _processor() -> str:
    """Model and abilities (proc_cpuinfo(5))."""
    wanted = ("model name", "flags", "stepping", "microcode")
    lines = {line for line in _CPUINFO.read_text(encoding="utf-8").splitlines() if line.startswith(wanted)}
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
