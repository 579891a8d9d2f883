"""What helps against the usual refusals of libvirt and QEMU, told by their own words. Pure."""

from __future__ import annotations

from typing import Final

TOO_LONG: Final = "monitor.sock' too long"
"""Of the folder of somebody else's libvirt; that of an embedded one is short enough."""
_HINTS: Final = (
    ("Invalid parameter 'stream'", "sandboxes with network access need QEMU 7.2 or later: update it"),
    ("Failed to parse user", "apt install libvirt-daemon-system, which makes QEMU's user"),
    ("Failed to connect socket", "start libvirtd, or set `connection: embed`"),
    ("no connection driver available", "apt install libvirt-daemon-driver-qemu qemu-system-x86"),
    ("Failed to acquire pid file", "another process uses this folder; stop it"),
    ("Cannot find", "apt install qemu-system-x86"),
    ("virt type 'kvm'", "KVM does not work here: set `accelerator: auto` or `accelerator: tcg`"),
    ("failed to set MSR", "KVM does not work here: set `accelerator: auto` or `accelerator: tcg`"),
    ("access KVM kernel module", "KVM does not work here: set `accelerator: auto` or `accelerator: tcg`"),
    (TOO_LONG, "libvirt's own folder has too long a name for sockets: set `connection: embed`"),
    ("loading elf kernel", "this is no kernel that QEMU boots; fetch one with: iii sandbox setup"),
    ("PVH", "this is no kernel that QEMU boots; fetch one with: iii sandbox setup"),
    ("Cannot allocate memory", "lower `memory` in the worker's sandbox settings, or stop something"),
    ("cannot set up guest memory", "lower `memory` in the worker's sandbox settings, or stop something"),
    ("No space left on device", "make room on the disk that holds the III_HOME and the project"),
    ("Permission denied", "QEMU's user must be able to read the image and the kernel: `connection: embed` sees to it"),
    ("already exists", "another engine has a domain of that name; end it with: virsh destroy"),
)
GENERAL: Final = "`iii doctor` checks what this backend needs"


def hint_for(message: str) -> str:
    """The first that fits."""
    return next((hint for words, hint in _HINTS if words in message), GENERAL)
