"""What the limits of a spec mean for a virtual machine, whatever runs it. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from iii_core.errors import UnsupportedOperation

if TYPE_CHECKING:
    from iii_core.sandbox.port import Limits, SandboxSpec

DEFAULT_MEMORY_MIB: Final = 512
MIN_MEMORY_MIB: Final = 96  # what the kernel and the agent need, with a little for a program
DEFAULT_DISK_MIB: Final = 8192  # sparse: it costs what is written
MAX_VCPUS: Final = 64


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
    """Raise `UnsupportedOperation` for what no guest boots with."""
    if memory_mib(spec.limits) < MIN_MEMORY_MIB:
        raise UnsupportedOperation(
            f"a virtual machine needs at least {MIN_MEMORY_MIB} MiB of memory, not {spec.limits.memory_mib}",
            hint="raise `memory` in the worker's sandbox settings, or choose a backend without a kernel of its own",
            details={"sandbox": spec.id},
        )


def unenforced(limits: Limits) -> tuple[str, ...]:
    """The limits that cannot be kept, in words."""
    if limits.cpus is None or limits.cpus == vcpus(limits):
        return ()
    whole = vcpus(limits)
    return (f"CPU limit {limits.cpus:g}: the virtual machine has {whole} whole processor{'s' * (whole > 1)}",)
