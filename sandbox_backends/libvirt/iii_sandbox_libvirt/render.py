"""From what a guest should be to libvirt's XML (https://libvirt.org/formatdomain.html). Pure."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from iii_sandbox_libvirt.policy import Accelerator

if TYPE_CHECKING:
    from collections.abc import Mapping

_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
ET.register_namespace("qemu", _QEMU)
TCG_CACHE_MIB = 64
COMMAND_LINE = f"{{{_QEMU}}}commandline"
ARGUMENT = f"{{{_QEMU}}}arg"
_QUICK_START = {"capability": "cpu-unavailable-features"}
_NETDEV = "iii-net"
NETDEV_STARTS = f"stream,id={_NETDEV},server=off,addr.type=unix,addr.path="
_CARD = f"virtio-net-pci,netdev={_NETDEV},mac=52:54:00:69:69:69,romfile=,bus=pcie.0,addr=0x10"
"""QEMU's own prefix, and nobody else is on that wire; a slot that libvirt, which knows nothing of it, does not use."""
RECONNECT_SECONDS = 1
"""How often QEMU tries to connect to the link again when it broke."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A disk of a guest, which knows it by its serial number."""

    path: Path
    serial: str
    writable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A folder that a guest knows by its tag; its server (virtiofsd) listens at the socket."""

    tag: str
    socket: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """What a domain is rendered from.

    Attributes:
        link: Unix socket that QEMU connects to; the guest sees it as the virtio port called ``port``.
        console: Unix socket that QEMU connects to, for the serial console.
        network: Unix socket that QEMU connects to, for its one network card; None if it has none.
        shares: folders of this machine.
        owner: user and group id that QEMU runs as; None means those of libvirt's own configuration.
        keep_owners: libvirt is one that would give the disks' files to QEMU's user, and must not: a root image is
            shared, and the writable disk is given already. Others do not know how to be told.
    """

    name: str
    emulator: Path
    accelerator: Accelerator
    vcpus: int
    memory_mib: int
    kernel: Path
    initramfs: Path
    cmdline: str
    disks: tuple[Disk, ...]
    link: Path
    port: str
    console: Path
    network: Path | None = None
    shares: tuple[Share, ...] = ()
    owner: tuple[int, int] | None = None
    keep_owners: bool = False


def render(guest: Guest) -> str:
    """The domain's XML.

    Machine type q35: microvm gains 0.2 s and hangs under load where the timer cannot be calibrated. Every end of the
    guest is the end of the domain. There is no USB, no balloon, no graphics, and a network card
    only where one is asked for.
    """
    domain = ET.Element("domain", type="kvm" if guest.accelerator is Accelerator.KVM else "qemu")
    _add(domain, "name", guest.name)
    _add(domain, "memory", str(guest.memory_mib), unit="MiB")
    _add(domain, "vcpu", str(guest.vcpus))
    if guest.shares:
        _share_memory(domain)
    _add_os(domain, guest)
    _add_processor(domain, guest.accelerator)
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        _add(domain, event, "destroy")
    _add_devices(domain, guest)
    if guest.owner is not None:
        _add(_add(domain, "seclabel", type="static", model="dac", relabel="no"), "label", render_owner(guest.owner))
    _add_quick_start(domain)
    _add_arguments(domain, guest.network)
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode") + "\n"


def render_snapshot(memory: Path, disks: tuple[Disk, ...]) -> str:
    """How libvirt is to save a guest's memory (https://libvirt.org/formatsnapshot.html); disks are ours to copy."""
    snapshot = ET.Element("domainsnapshot")
    _add(snapshot, "memory", snapshot="external", file=str(memory))
    listed = _add(snapshot, "disks")
    for target in _targets(disks):
        _add(listed, "disk", name=target, snapshot="no")
    return ET.tostring(snapshot, encoding="unicode")


def render_owner(owner: tuple[int, int]) -> str:
    """As a label of libvirt's "dac": numbers, not names."""
    return f"+{owner[0]}:+{owner[1]}"


def _share_memory(domain: ET.Element) -> None:
    """The servers of shares read requests where the guest wrote them."""
    backing = _add(domain, "memoryBacking")
    _add(backing, "source", type="memfd")
    _add(backing, "access", mode="shared")


def _targets(disks: tuple[Disk, ...]) -> list[str]:
    return [f"vd{letter}" for letter, _ in zip("abcdefgh", disks, strict=False)]


def _add_os(domain: ET.Element, guest: Guest) -> None:
    system = _add(domain, "os")
    _add(system, "type", "hvm", arch="x86_64", machine="q35")
    _add(system, "kernel", str(guest.kernel))
    _add(system, "initrd", str(guest.initramfs))
    _add(system, "cmdline", guest.cmdline)


def _add_processor(domain: ET.Element, accelerator: Accelerator) -> None:
    features = _add(domain, "features")
    _add(features, "acpi")
    if accelerator is Accelerator.KVM:
        _add(domain, "cpu", mode="host-passthrough", check="none")
        return
    _add(_add(features, "tcg"), "tb-cache", str(TCG_CACHE_MIB), unit="MiB")
    _add(domain, "cpu", mode="maximum")


def _add_quick_start(domain: ET.Element) -> None:
    """Let libvirt not ask QEMU for the processor's 400 features one by one before the guest may start: 0.25 s.

    It compares them with what was asked for by name, and nothing is. Without this ability of QEMU's, libvirt asks in
    another way, which is one question (https://libvirt.org/drvqemu.html, "Control of QEMU capabilities").
    """
    _add(_add(domain, f"{{{_QEMU}}}capabilities"), f"{{{_QEMU}}}del", _QUICK_START)


def _add_arguments(domain: ET.Element, network: Path | None) -> None:
    """What libvirt has no words for (https://libvirt.org/drvqemu.html, "Pass-through of arbitrary qemu commands").

    QEMU is to end when its guest does: libvirt has it stay until it is told to end, and by whom, if libvirt is gone?
    And its network card speaks to a socket.
    """
    arguments = _add(domain, COMMAND_LINE)
    words = ["-action", "shutdown=poweroff"]
    if network is not None:
        words += ["-netdev", netdev(network), "-device", _CARD]
    for word in words:
        _add(arguments, ARGUMENT, {"value": word})


def netdev(network: Path) -> str:
    """QEMU's option (qemu(1), ``-netdev stream``); QEMU doubles commas in values."""
    return f"{NETDEV_STARTS}{str(network).replace(',', ',,')}"


def _add_devices(domain: ET.Element, guest: Guest) -> None:
    devices = _add(domain, "devices")
    slots = itertools.count(1)
    _add(devices, "emulator", str(guest.emulator))
    _add(devices, "controller", type="usb", model="none")
    _add_address(_add(devices, "controller", type="virtio-serial", index="0"), next(slots))
    for target, disk in zip(_targets(guest.disks), guest.disks, strict=True):
        _add_address(_add_disk(devices, disk, target, keep_owners=guest.keep_owners), next(slots))
    for share in guest.shares:
        element = _add(devices, "filesystem", type="mount")
        _add(element, "driver", type="virtiofs")
        _add(element, "source", socket=str(share.socket))
        _add(element, "target", dir=share.tag)
    serial = _add(devices, "serial", type="unix")
    _add(serial, "source", mode="connect", path=str(guest.console))
    _add(serial, "target", {"type": "isa-serial", "port": "0"})
    channel = _add(devices, "channel", type="unix")
    link = _add(channel, "source", mode="connect", path=str(guest.link))
    _add(link, "reconnect", enabled="yes", timeout=str(RECONNECT_SECONDS))
    _add(channel, "target", {"type": "virtio", "name": guest.port})
    _add(devices, "memballoon", model="none")


def _add_address(device: ET.Element, slot: int) -> None:
    """At the root of PCI: libvirt would give each device a port of its own, and a guest takes time to find those."""
    _add(device, "address", type="pci", bus="0x00", slot=f"0x{slot:02x}")


def _add_disk(devices: ET.Element, disk: Disk, target: str, *, keep_owners: bool) -> ET.Element:
    """A raw file. What cannot be written is the guest's error: by default QEMU stops a guest when the disk is full."""
    element = _add(devices, "disk", type="file", device="disk")
    options = {"name": "qemu", "type": "raw", "cache": "writeback", "error_policy": "report", "discard": "unmap"}
    _add(element, "driver", options if disk.writable else {"name": "qemu", "type": "raw"})
    source = _add(element, "source", file=str(disk.path))
    if keep_owners:
        _add(source, "seclabel", model="dac", relabel="no")
    _add(element, "target", dev=target, bus="virtio")
    if not disk.writable:
        _add(element, "readonly")
        _add(element, "shareable")
    _add(element, "serial", disk.serial)
    return element


def _add(parent: ET.Element, tag: str, value: str | Mapping[str, str] | None = None, **attributes: str) -> ET.Element:
    element = _element(tag, value, **attributes)
    parent.append(element)
    return element


def _element(tag: str, value: str | Mapping[str, str] | None = None, **attributes: str) -> ET.Element:
    """``value`` is the text, or attributes whose names are no Python names."""
    element = ET.Element(tag, attributes)
    if isinstance(value, str):
        element.text = value
    elif value is not None:
        element.attrib.update(value)
    return element
