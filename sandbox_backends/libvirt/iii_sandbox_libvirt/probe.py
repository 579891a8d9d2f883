"""Whether guests boot here, and what runs their instructions: found out by booting one.

The verdict is kept per boot of this machine, emulator and guest kernel (`iii_sandbox_guest.trial`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import msgspec
import trio
from iii_sandbox_guest.boot import Needs
from iii_sandbox_guest.prepare import prepare_boot
from iii_sandbox_guest.trial import boot_once, read_verdict, verdict_path, write_verdict

from iii_core.errors import IIIError
from iii_core.records import ProbeResult
from iii_sandbox_libvirt.driver import find_emulator, open_driver, qemu_user
from iii_sandbox_libvirt.places import KVM
from iii_sandbox_libvirt.policy import Accelerator

if TYPE_CHECKING:
    from pathlib import Path

    from iii_core.records import OpenContext
    from iii_sandbox_libvirt.policy import Settings
    from iii_sandbox_libvirt.users import User

DEADLINES: Final = {Accelerator.KVM: 10.0, Accelerator.TCG: 18.0}  # together below the host's limit of a probe


class Verdict(msgspec.Struct, frozen=True):
    """What a guest booted with, and why not with something better."""

    accelerator: Accelerator
    reason: str = ""


async def probe(settings: Settings, context: OpenContext) -> ProbeResult:
    """See `SandboxBackend.probe`."""
    try:
        verdict = await find_accelerator(settings, context)
    except IIIError as error:
        return ProbeResult(ok=False, reason=error.message, hint=error.hint, details=error.details)
    if verdict.accelerator is Accelerator.KVM:
        return ProbeResult(ok=True)
    return ProbeResult(
        ok=True,
        automatic=False,
        reason=f"guests are emulated, which is slow: {verdict.reason}",
        hint="to use it all the same, set `sandbox: {backend: libvirt}`",
    )


async def find_accelerator(settings: Settings, context: OpenContext) -> Verdict:
    """The accelerator to use; boots a guest unless it is configured, or was found out before.

    Raises:
        BackendUnavailable: something that every guest needs is missing.
        SandboxError: none boots; the message says why.
    """
    if settings.accelerator != "auto":
        return Verdict(Accelerator(settings.accelerator), "so configured")
    kept = await trio.to_thread.run_sync(_verdict_file, settings, context)
    known = read_verdict(kept, Verdict)
    if known is None:
        known = await _try_all(settings, context)
        await trio.to_thread.run_sync(write_verdict, kept, known)
    return known


async def _try_all(settings: Settings, context: OpenContext) -> Verdict:
    reason = _kvm_missing(qemu_user(settings))
    if reason is None:
        reason = await _failure_of(Accelerator.KVM, settings, context)
    if reason is None:
        return Verdict(Accelerator.KVM)
    await _boot_one(Accelerator.TCG, settings, context)
    return Verdict(Accelerator.TCG, reason)


def _kvm_missing(user: User | None) -> str | None:
    if not KVM.exists():
        return "there is no /dev/kvm: this processor or hypervisor does not offer virtualisation"
    if user is None and not os.access(KVM, os.R_OK | os.W_OK):
        return "/dev/kvm may not be opened: as root, add yourself to the group kvm"
    if user is not None and not user.may_write(KVM):
        return f"/dev/kvm may not be opened by QEMU's user {user.name}: chgrp kvm /dev/kvm; chmod 660 /dev/kvm"
    return None


async def _failure_of(accelerator: Accelerator, settings: Settings, context: OpenContext) -> str | None:
    try:
        await _boot_one(accelerator, settings, context)
    except IIIError as error:
        return f"/dev/kvm is there, but a guest does not boot with it ({error.message.splitlines()[0]})"
    return None


async def _boot_one(accelerator: Accelerator, settings: Settings, context: OpenContext) -> None:
    await boot_once(
        context,
        lambda _: open_driver(settings, context, accelerator, purpose="probe"),
        deadline=DEADLINES[accelerator],
    )


def _verdict_file(settings: Settings, context: OpenContext) -> Path:
    """Raises `BackendUnavailable`."""
    emulator = find_emulator(settings, context)
    files = prepare_boot(context.home, needs=Needs(), kernel=settings.kernel_path)
    depends = (emulator, files.kernel, files.initramfs)
    return verdict_path(context.home, "libvirt", files=depends, settings=settings.connection)
