"""From what a guest should be to libvirt's XML (https://libvirt.org/formatdomain.html). Pure."""

from __future__ import annotations

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
RECONNECT_SECONDS = 1
"""How often QEMU tries to connect to the link again when it broke."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A disk of a guest, which knows it by its serial number."""

    path: Path
    serial: str
    writable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """What a domain is rendered from.

    Attributes:
        link: Unix socket that QEMU connects to; the guest sees it as the virtio port called ``port``.
        console: Unix socket that QEMU connects to, for the serial console.
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
    keep_owners: bool = False


def render(guest: Guest) -> str:
    """The domain's XML.

    Machine type q35: microvm gains 0.2 s and hangs under load where the timer cannot be calibrated. Every end of the
    guest is the end of the domain. There is no network device, no USB, no balloon, no graphics.
    """
    domain = ET.Element("domain", type="kvm" if guest.accelerator is Accelerator.KVM else "qemu")
    _add(domain, "name", guest.name)
    _add(domain, "memory", str(guest.memory_mib), unit="MiB")
    _add(domain, "vcpu", str(guest.vcpus))
    _add_os(domain, guest)
    _add_processor(domain, guest.accelerator)
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        _add(domain, event, "destroy")
    _add_devices(domain, guest)
    _add_own_end(domain)
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


def _add_own_end(domain: ET.Element) -> None:
    """Let QEMU end when its guest does. libvirt has it stay until it is told to end, and by whom, if libvirt is gone?

    (https://libvirt.org/drvqemu.html, "Pass-through of arbitrary qemu commands"; qemu(1), ``-action``.)
    """
    arguments = _add(domain, f"{{{_QEMU}}}commandline")
    for word in ("-action", "shutdown=poweroff"):
        _add(arguments, f"{{{_QEMU}}}arg", {"value": word})


def _add_devices(domain: ET.Element, guest: Guest) -> None:
    devices = _add(domain, "devices")
    _add(devices, "emulator", str(guest.emulator))
    _add(devices, "controller", type="usb", model="none")
    _add(devices, "controller", type="virtio-serial", index="0")
    for target, disk in zip(_targets(guest.disks), guest.disks, strict=True):
        _add_disk(devices, disk, target, keep_owners=guest.keep_owners)
    serial = _add(devices, "serial", type="unix")
    _add(serial, "source", mode="connect", path=str(guest.console))
    _add(serial, "target", {"type": "isa-serial", "port": "0"})
    channel = _add(devices, "channel", type="unix")
    link = _add(channel, "source", mode="connect", path=str(guest.link))
    _add(link, "reconnect", enabled="yes", timeout=str(RECONNECT_SECONDS))
    _add(channel, "target", {"type": "virtio", "name": guest.port})
    _add(devices, "memballoon", model="none")


def _add_disk(devices: ET.Element, disk: Disk, target: str, *, keep_owners: bool) -> None:
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
