"""Defaults and decisions of this backend, apart from rendering and I/O."""

from __future__ import annotations

import enum
import math
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from iii_core.errors import SandboxError
from iii_core.sandbox.port import Capability

if TYPE_CHECKING:
    from iii_core.sandbox.port import Limits, SandboxSpec

CAPABILITIES: Final = frozenset(
    {
        Capability.CPU_LIMIT,
        Capability.MEMORY_LIMIT,
        Capability.PID_LIMIT,
        Capability.DISK_LIMIT,
        Capability.USER_RANGE,
        Capability.SNAPSHOT,
    }
)
DEFAULT_MEMORY_MIB: Final = 512
MIN_MEMORY_MIB: Final = 96  # what the kernel and the agent need, with a little for a program
DEFAULT_DISK_MIB: Final = 8192  # sparse: it costs what is written
MAX_VCPUS: Final = 64
EMBEDDED: Final = "embed"
SESSION: Final = "session"


class Accelerator(enum.StrEnum):
    """What runs the guest's instructions."""

    KVM = "kvm"
    TCG = "tcg"  # QEMU's own emulation: works everywhere, about ten times slower


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the ``libvirt`` backend.

    Attributes:
        connection: ``embed`` (libvirt inside the sandbox host: no daemon, works as an ordinary user too), ``session``
            (an ordinary user's own daemon), ``system`` (the machine's daemon; as root), or a libvirt URI of this
            machine, taken as ``system``. A daemon's QEMU opens files where they are: with ``system``, ``user`` must be
            able to read the project's and the III_HOME folder.
        accelerator: ``auto`` boots a guest to find out.
        kernel: the guest's kernel, a bzImage or a folder with ``vmlinux`` and ``modules/``; None means the one that
            ``iii sandbox setup`` fetched, or an installed one.
        emulator: QEMU's name or path.
        user: whom QEMU runs as if the engine is root; with ``system`` it must be the user of libvirt's qemu.conf.
    """

    connection: str = EMBEDDED
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"
    kernel: str | None = None
    emulator: str = "qemu-system-x86_64"
    user: str = "libvirt-qemu"

    @property
    def kernel_path(self) -> Path | None:
        """`kernel`."""
        return Path(self.kernel) if self.kernel is not None else None


def vcpus(limits: Limits) -> int:
    """How many processors a guest sees: whole ones."""
    return 1 if limits.cpus is None else min(MAX_VCPUS, max(1, math.ceil(limits.cpus)))


def memory_mib(limits: Limits) -> int:
    """How much memory a guest has."""
    return DEFAULT_MEMORY_MIB if limits.memory_mib is None else limits.memory_mib


def disk_mib(limits: Limits) -> int:
    """How big the writable disk is."""
    return DEFAULT_DISK_MIB if limits.disk_mib is None else limits.disk_mib


def check_limits(spec: SandboxSpec) -> None:
    """Raise `SandboxError` for what no guest boots with."""
    if memory_mib(spec.limits) < MIN_MEMORY_MIB:
        raise SandboxError(
            f"a virtual machine needs at least {MIN_MEMORY_MIB} MiB of memory, not {spec.limits.memory_mib}",
            hint="raise `memory` in the worker's sandbox settings, or choose a backend without a kernel of its own",
            details={"sandbox": spec.id},
        )


def unenforced(limits: Limits) -> tuple[str, ...]:
    """The limits that cannot be kept, in words."""
    if limits.cpus is None or limits.cpus == vcpus(limits):
        return ()
    return (f"CPU limit {limits.cpus:g}: the machine has {vcpus(limits)} whole processors",)
