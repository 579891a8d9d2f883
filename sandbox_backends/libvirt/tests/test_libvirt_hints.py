"""Every refusal comes with what helps against it."""

from __future__ import annotations

import pytest
from iii_sandbox_libvirt.hints import GENERAL, hint_for


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        ("libvirt: Failed to connect socket to '/run/libvirt/libvirt-sock': No such file", "start libvirtd"),
        ("libvirt: Failed to parse user 'libvirt-qemu'", "libvirt-daemon-system"),
        ("libvirt: internal error: … error: failed to set MSR 0x10a to 0x69", "accelerator: auto"),
        ("libvirt: unsupported configuration: Emulator '/q' does not support virt type 'kvm'", "accelerator: auto"),
        ("libvirt: internal error: … qemu-system-x86_64: Error while loading elf kernel", "iii sandbox setup"),
        ("libvirt: … cannot set up guest memory 'pc.ram': Cannot allocate memory", "lower `memory`"),
        ("libvirt: … Could not open '/x': Permission denied", "connection: embed"),
        ("libvirt: internal error: UNIX socket path '/h/.config/…/monitor.sock' too long", "connection: embed"),
        ("libvirt: something new", GENERAL),
        ("", GENERAL),
    ],
)
def test_hint(message: str, hint: str) -> None:
    assert hint in hint_for(message)
