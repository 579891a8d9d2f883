"""Rows of ``iii doctor``: what virtual machines of libvirt need of this machine.

None of them is ever ``failed``: another backend may work. Whether any does is a row of the core.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

import trio

from iii_core.errors import BackendUnavailable
from iii_core.records import CheckResult
from iii_sandbox_libvirt.needs import VIRTIOFSD, find_mounts_lack
from iii_sandbox_libvirt.places import KVM
from iii_sandbox_libvirt.policy import Settings

if TYPE_CHECKING:
    from iii_core.records import OpenContext


async def check_libvirt(_: OpenContext) -> CheckResult:
    """The library."""
    try:
        library: Any = await trio.to_thread.run_sync(import_module, "libvirt")
    except ImportError as error:
        hint = "apt install libvirt0 libvirt-daemon-driver-qemu, then reinstall iii-sandbox-libvirt"
        return CheckResult(status="warning", message=f"libvirt's Python binding cannot be loaded: {error}", hint=hint)
    number: int = library.getVersion()  # libvirt-host.h: major * 1,000,000 + minor * 1,000 + release
    version = f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
    return CheckResult(status="ok", message=f"version {version}")


async def check_qemu(context: OpenContext) -> CheckResult:
    """The emulator of this processor."""
    from iii_sandbox_libvirt.driver import find_emulator

    await trio.lowlevel.checkpoint()
    try:
        return CheckResult(status="ok", message=str(find_emulator(Settings(), context)))
    except BackendUnavailable as error:
        return CheckResult(status="warning", message=error.message, hint=error.hint)


async def check_kvm(_: OpenContext) -> CheckResult:
    """Whether machines can be fast. That the device is there proves little; the backend's trial says if one boots."""
    await trio.lowlevel.checkpoint()
    if not KVM.exists():
        hint = "switch virtualisation on in the firmware, or as root: modprobe kvm_intel (or kvm_amd)"
        return CheckResult(status="warning", message=f"there is no {KVM}: machines are slow", hint=hint)
    if not os.access(KVM, os.R_OK | os.W_OK):
        hint = "as root: usermod --append --groups kvm USER, and log in anew"
        return CheckResult(status="warning", message=f"{KVM} may not be opened: machines are slow", hint=hint)
    return CheckResult(
        status="ok", message=f"{KVM} may be opened; 'iii sandbox backends' says if machines boot with it"
    )


async def check_mounts(_: OpenContext) -> CheckResult:
    """Whether guests can be shown folders of this machine."""
    await trio.lowlevel.checkpoint()
    lack = find_mounts_lack()
    if lack is not None:
        return CheckResult(status="warning", message=f"no virtual machine can have any: {lack.reason}", hint=lack.hint)
    return CheckResult(status="ok", message=f"virtual machines can have some, by {VIRTIOFSD}")
