"""Rows of ``iii doctor``: what virtual machines of libvirt need of this machine.

None of them is ever ``failed``: another backend may work. Whether any does is a row of the core.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio
from iii_sandbox_guest.kernel import find_kernel

from iii_core.errors import BackendUnavailable
from iii_core.records import CheckResult
from iii_sandbox_libvirt.api import load
from iii_sandbox_libvirt.driver import find_emulator
from iii_sandbox_libvirt.places import KVM
from iii_sandbox_libvirt.policy import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from iii_core.records import OpenContext


async def check_libvirt(context: OpenContext) -> CheckResult:
    """The library, and what of Python it needs."""

    def version() -> str:
        major, rest = divmod(load().getVersion(), 1_000_000)
        return f"libvirt {major}.{rest // 1000}.{rest % 1000}"

    return await _found(version)


async def check_qemu(context: OpenContext) -> CheckResult:
    """The emulator of this processor."""
    return await _found(lambda: str(find_emulator(Settings(), context)))


async def check_guest_kernel(context: OpenContext) -> CheckResult:
    """What machines boot."""
    return await _found(lambda: find_kernel(context.home).release)


async def check_kvm(context: OpenContext) -> CheckResult:
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


async def _found(look: Callable[[], str]) -> CheckResult:
    try:
        return CheckResult(status="ok", message=await trio.to_thread.run_sync(look, abandon_on_cancel=True))
    except BackendUnavailable as error:
        return CheckResult(status="warning", message=error.message.splitlines()[0], hint=error.hint)
