"""Defaults and decisions of this backend, apart from rendering and I/O."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Final, Literal

import msgspec

from iii_core.sandbox.port import Capability

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
ALL_CAPABILITIES: Final = CAPABILITIES | {Capability.EGRESS, Capability.MOUNTS}
"""With what a gate and mounts need of the machine (`iii_sandbox_gate.needs`, `iii_sandbox_libvirt.needs`)."""
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
        user: an account. With ``system``, whom QEMU runs as: it must be the user of libvirt's qemu.conf. With ``embed``
            as root, it is who decides whether QEMUs, each a user of its own, may use KVM.
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
