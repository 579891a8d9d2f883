"""What a virtual machine must look like for the agent to boot in it: names, and the kernel's command line. Pure.

``docs/protocol/agent.md``, "Booting a machine".
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from iii_core.errors import SandboxError

LINK_PORT: Final = "iii.agent"
"""Name of the virtio-serial port that is the link."""
VSOCK_PORT: Final = 1024
"""The agent's vsock port, where that is the link."""
ROOT_SERIAL: Final = "iii-root"
"""Serial number of the virtio-blk disk with the root image; attach it read-only."""
DATA_SERIAL: Final = "iii-data"
"""Serial number of the virtio-blk disk that takes what is written."""

VIRTIO_LINK: Final = f"virtio:{LINK_PORT}"
VSOCK_LINK: Final = f"vsock:{VSOCK_PORT}"
IMAGE_FORMATS: Final = ("squashfs", "erofs")
MAX_CMDLINE: Final = 2047
"""In bytes: what Linux reads of it (``COMMAND_LINE_SIZE`` of x86 and arm64, less the NUL)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestMount:
    """A virtiofs device by its ``tag`` (at most 35 bytes), and the folder that it becomes; see `Mount`."""

    tag: str
    target: str
    writable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """How a machine's network device is set up: IPv4 addresses, the length of its network's prefix.

    ``nameservers``: one to three.
    """

    address: str
    prefix: int
    gateway: str
    nameservers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a machine is going to have.

    Attributes:
        link: `VIRTIO_LINK` or `VSOCK_LINK`.
        bus: how virtio devices are attached: ``pci`` or ``mmio``.
        image_format: of the root image, one of `IMAGE_FORMATS`.
        data_disk: whether there is a disk for what is written (`iii_sandbox_guest.disk`); else that is lost with the
            machine, and takes up to half of its memory.
        network: how its network device is set up; None if it has none.
        mounts: folders of the host, at most 32.
        pids: how many processes may run inside at once, besides the agent (≥ 1); None for any number.
        console: the kernel's name of the console.
    """

    link: str = VIRTIO_LINK
    bus: str = "pci"
    image_format: str = "squashfs"
    data_disk: bool = True
    network: Network | None = None
    mounts: tuple[GuestMount, ...] = ()
    pids: int | None = None
    console: str = "ttyS0"

    def modules(self) -> tuple[str, ...]:
        """The kernel modules that take care of it, besides those that these depend on."""
        link = ("vmw_vsock_virtio_transport",) if self.link.startswith("vsock:") else ("virtio_console",)
        network = ("virtio_net",) if self.network is not None else ()
        data = ("ext4",) if self.data_disk else ()
        mounts = ("virtiofs",) if self.mounts else ()
        return (f"virtio_{self.bus}", *link, "virtio_blk", *network, self.image_format, "overlay", *data, *mounts)


def render_cmdline(needs: Needs) -> str:
    """The kernel's command line.

    A kernel that panics ends the machine (``panic=-1`` with a VMM that does not reboot). It says on the console what
    goes wrong and little else. Its self tests are left out: they take 0.3 s of each boot. So is the test of the timer's
    interrupt, as Linux does by itself under KVM: it counts ticks in a stretch of real time, and panics in an emulated
    machine that a busy host has not let run for that long.

    Raises `SandboxError` where the places of mounts are too long for it.
    """
    words = [
        f"console={needs.console}",
        "quiet",
        "loglevel=6",
        "panic=-1",
        "cryptomgr.notests",
        "no_timer_check",
        f"iii.link={needs.link}",
        f"iii.root={ROOT_SERIAL}",
        f"iii.format={needs.image_format}",
    ]
    if needs.data_disk:
        words.append(f"iii.data={DATA_SERIAL}")
    if needs.pids is not None:
        words.append(f"iii.pids={needs.pids}")
    if (network := needs.network) is not None:
        words.append(f"iii.net={network.address}/{network.prefix},{network.gateway}")
        words.append(f"iii.dns={','.join(network.nameservers)}")
    words += [_render_mount(mount) for mount in needs.mounts]
    cmdline = " ".join(words)
    if len(cmdline) > MAX_CMDLINE:
        raise SandboxError(
            f"the places of the mounts are too long for a machine: {len(cmdline)} bytes, {MAX_CMDLINE} fit",
            hint="give them shorter targets, or mount fewer folders",
        )
    return cmdline


def _render_mount(mount: GuestMount) -> str:
    return f"iii.mount={mount.tag}:{quote(os.fsencode(mount.target))}" + (":rw" if mount.writable else "")
