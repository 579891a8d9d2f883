"""Defaults and decisions of this backend, apart from rendering and I/O."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from iii_core.sandbox.port import Capability

CAPABILITIES: Final = frozenset(
    {
        Capability.CPU_LIMIT,
        Capability.MEMORY_LIMIT,
        Capability.PID_LIMIT,
        Capability.DISK_LIMIT,
        Capability.USER_RANGE,
    }
)
EXPERIMENTAL: Final = (
    "experimental: written against the API description of Cloud Hypervisor, and little used with the real one"
)


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the ``cloud-hypervisor`` backend.

    Attributes:
        program: the VMM's name or path.
        kernel: the guest's kernel, a bzImage or a folder with ``vmlinux`` and ``modules/``; None means the one that
            ``iii sandbox setup`` fetched, or an installed one.
        seccomp: whether the VMM forbids itself the system calls it has no use for.
        landlock: whether the VMM forbids itself all files but its guest's. Older kernels do not have it.
    """

    program: str = "cloud-hypervisor"
    kernel: str | None = None
    seccomp: bool = True
    landlock: bool = True

    @property
    def kernel_path(self) -> Path | None:
        """`kernel`."""
        return Path(self.kernel) if self.kernel is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long the VMM may take, in seconds.

    Attributes:
        boot: for a whole start, until the agent listens.
        call: for one call of its API.
        retry: the longest pause before the agent is called again; the first is a tenth of it.
        farewell: for a process to end whose socket has broken.
        button: for a guest to end after its power button was pressed. Short: a guest whose agent was asked to power
            off, and did not, is unlikely to heed it.
        shutdown: for each call of the ladder, and for the VMM to end after the last.
    """

    boot: float = 60.0
    call: float = 10.0
    retry: float = 0.1
    farewell: float = 1.0
    button: float = 0.2
    shutdown: float = 2.0
