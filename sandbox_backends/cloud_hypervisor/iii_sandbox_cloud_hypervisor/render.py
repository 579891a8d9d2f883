"""From what a guest should be to the VMM's command line and its ``VmConfig``. Pure.

The names are those of ``cloud-hypervisor --help`` and of the API description that the tests keep in ``data/``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

GUEST_CID: Final = 3  # the first that is free (vsock(7)); each VMM has a name space of its own
RAW: Final = "Raw"
REACH: Final = ("landlock_enable", "net", "fs", "pmem", "devices", "user_devices", "vdpa", "generic-vhost-user")
"""What decides, besides its disks, which part of this machine a guest can reach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A disk of a guest, which knows it by its serial number."""

    path: Path
    serial: str
    writable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """What a machine is rendered from.

    Attributes:
        link: where the VMM makes the socket by which the guest's vsock ports are reached.
        console: a file or FIFO that takes what the guest says.
    """

    vcpus: int
    memory_mib: int
    kernel: Path
    initramfs: Path
    cmdline: str
    disks: tuple[Disk, ...]
    link: Path
    console: Path
    landlock: bool


def render_argv(program: Path, *, api: int, events: int, seccomp: bool) -> list[str]:
    """The VMM's command line: it inherits a listening socket for its API, and a descriptor that takes its events."""
    return [
        str(program),
        "--api-socket",
        f"fd={api}",
        "--event-monitor",
        f"fd={events}",
        "--seccomp",
        "true" if seccomp else "false",
    ]


def render_config(guest: Guest) -> dict[str, Any]:
    """The ``VmConfig``: one serial console, the link, the disks; no network, no virtualisation in the guest."""
    return {
        "cpus": {"boot_vcpus": guest.vcpus, "max_vcpus": guest.vcpus, "nested": False},
        "memory": {"size": guest.memory_mib << 20},
        "payload": {
            "kernel": str(guest.kernel),
            "initramfs": str(guest.initramfs),
            "cmdline": guest.cmdline,
        },
        "disks": [_render_disk(disk) for disk in guest.disks],
        "rng": {"src": "/dev/urandom"},
        "serial": {"mode": "File", "file": str(guest.console)},
        "console": {"mode": "Off"},
        "vsock": {"cid": GUEST_CID, "socket": str(guest.link)},
        "landlock_enable": guest.landlock,
    }


def _render_disk(disk: Disk) -> dict[str, Any]:
    """A raw file. The format must be said: from a guessed one, a guest could make its disk name any file of ours."""
    return {"path": str(disk.path), "readonly": not disk.writable, "serial": disk.serial, "image_type": RAW}


def misunderstood(asked: Mapping[str, Any], got: Mapping[str, Any]) -> list[str]:
    """What the VMM took differently, of that by which a guest could reach what is not its own.

    A VMM ignores what it does not know, so one that is too old would boot with less protection than was asked for.

    Args:
        asked: the ``VmConfig`` that was sent.
        got: the one that ``vm.info`` gives back; it has more than was asked for.
    """
    wrong = [f"{name} as {got.get(name)!r}" for name in REACH if _differs(asked.get(name), got.get(name))]
    disks = cast("list[object]", got.get("disks")) if isinstance(got.get("disks"), list) else []
    if len(disks) != len(asked["disks"]):
        return [*wrong, f"disks as {len(disks)}"]
    for number, (wanted, disk) in enumerate(zip(asked["disks"], disks, strict=True)):
        found = cast("dict[str, object]", disk) if isinstance(disk, dict) else {}
        wrong += [
            f"disks[{number}].{name} as {found.get(name)!r}"
            for name, value in wanted.items()
            if _differs(value, found.get(name))
        ]
    return wrong


def _differs(asked: object, got: object) -> bool:
    """None, false and an empty list are the same: not asked for."""
    return (asked or None) != (got or None)
