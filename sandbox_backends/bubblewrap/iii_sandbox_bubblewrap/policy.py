"""Defaults and decisions of this backend, apart from rendering and I/O."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from iii_core.sandbox.ids import SANDBOX_IDS
from iii_core.sandbox.port import Capability

if TYPE_CHECKING:
    from iii_core.sandbox.port import Lack, Limits

CAPABILITIES = frozenset(
    {
        Capability.CPU_LIMIT,
        Capability.MEMORY_LIMIT,
        Capability.PID_LIMIT,
        Capability.USER_RANGE,
        Capability.MOUNTS,
    }
)
"""What everybody may use."""

ROOT_CAPABILITIES = CAPABILITIES | {Capability.DISK_LIMIT}
"""What root may use: a layer with a size of its own is a file system in a file, which others may not mount."""

ALL_CAPABILITIES = ROOT_CAPABILITIES | {Capability.EGRESS}

DATA_DISK = "data.img"
TMPFS_DEFAULT_MIB = 512
HOSTS = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"

PROC_HIDDEN = (
    "/proc/kcore",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/vmcore",
)
"""What no user but root may touch anyway. It matters where a sandbox's root *is* the machine's (without capabilities):
the kernel guards these files by user id alone."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the ``bubblewrap`` backend.

    Attributes:
        program: bwrap's name or path.
        id_base: where the 65536 user ids of sandboxes start on this machine, if the engine runs as root.
        unprivileged: as root, mount as an ordinary user would (FUSE, user namespace).
    """

    program: str = "bwrap"
    id_base: int = SANDBOX_IDS
    unprivileged: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.id_base <= 0xFFFE0000:
            raise ValueError("id_base must be between 1 and 0xfffe0000")


def capabilities(lack: Lack | None) -> frozenset[Capability]:
    """What this user may use on this machine; ``lack`` is what gates miss (`iii_sandbox_gate.needs`), if anything."""
    able = ROOT_CAPABILITIES if may_mount() else CAPABILITIES
    return able if lack else able | {Capability.EGRESS}


def may_mount() -> bool:
    """Whether the kernel lets this process mount block devices."""
    from iii_sandbox_bubblewrap.keeper.identity import in_first_user_namespace

    return os.geteuid() == 0 and in_first_user_namespace()


def existing(paths: tuple[str, ...]) -> tuple[str, ...]:
    """Those that this kernel has; a sandbox's /proc has the same."""
    return tuple(path for path in paths if Path(path).exists())


def tmpfs_bytes(limits: Limits) -> int:
    """How big /tmp, /run and /dev/shm may each become: they count as memory of the sandbox, so at most half of it."""
    mib = TMPFS_DEFAULT_MIB if limits.memory_mib is None else min(TMPFS_DEFAULT_MIB, limits.memory_mib // 2)
    return mib * 1024 * 1024
