"""Whether guests boot here, and what runs their instructions: found out by booting one.

That a kernel offers ``/dev/kvm`` says little: it may open, create a machine and even run a few instructions of it, and
yet no guest ever boots. So the verdict on KVM is a booted kernel whose agent has answered within a deadline. It is kept
per host kernel, emulator and guest kernel.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import trio
from iii_sandbox_guest.boot import Needs
from iii_sandbox_guest.emptyimage import write_empty_image
from iii_sandbox_guest.prepare import prepare_boot

from iii_core.errors import BootTimeout, IIIError
from iii_core.project.files import write_atomic
from iii_core.records import ProbeResult
from iii_core.sandbox.agent import open_agent
from iii_core.sandbox.port import RootImage, SandboxSpec
from iii_sandbox_libvirt.driver import find_emulator, open_driver, qemu_user
from iii_sandbox_libvirt.places import KVM
from iii_sandbox_libvirt.policy import Accelerator

if TYPE_CHECKING:
    from iii_core.records import OpenContext
    from iii_sandbox_libvirt.policy import Settings
    from iii_sandbox_libvirt.users import User

DEADLINES: Final = {Accelerator.KVM: 10.0, Accelerator.TCG: 18.0}  # together below the host's limit of a probe
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


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
    known = _read(kept)
    if known is None:
        known = await _try_all(settings, context)
        await trio.to_thread.run_sync(_write, kept, known)
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
    """Boot an empty image until its agent is ready. Raises `IIIError`."""
    context.runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="probe-", dir=context.runtime_dir) as name:
        folder = Path(name)
        image = folder / "empty.squashfs"
        write_empty_image(image)
        spec = SandboxSpec(
            id="probe",
            root=RootImage(path=image, format="squashfs", digest=""),
            writable_dir=folder / "layer",
            console=folder / "console",
            hostname="probe",
        )
        async with open_driver(settings, context, accelerator, purpose="probe") as driver:
            await driver.create(spec)
            with trio.move_on_after(DEADLINES[accelerator]) as limit:
                await driver.start(spec.id)
                link = trio.SocketStream(trio.socket.from_stdlib_socket(await driver.link(spec.id)))
                async with open_agent(link, tunnel_ports=[], serve_tunnel=_refuse):
                    pass
            if limit.cancelled_caught:
                raise _silent(accelerator, spec.console)
            await driver.destroy(spec.id, keep_writable=False)


def _silent(accelerator: Accelerator, console: Path) -> BootTimeout:
    said = console.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:] if console.exists() else []
    return BootTimeout(
        f"a guest's agent did not answer within {DEADLINES[accelerator]:g} s",
        details={"accelerator": accelerator.value, "console": said},
    )


async def _refuse(stream: trio.abc.Stream) -> None:
    await stream.aclose()


def _verdict_file(settings: Settings, context: OpenContext) -> Path:
    """Where the verdict is kept: by everything that it depends on. Raises `BackendUnavailable`."""
    emulator = find_emulator(settings, context)
    files = prepare_boot(context.home, needs=Needs(), kernel=settings.kernel_path)
    depends = (
        BOOT_ID.read_text(encoding="ascii"),
        *(f"{path}:{path.stat().st_mtime_ns}" for path in (emulator, files.kernel, files.initramfs)),
        settings.connection,
        str(os.geteuid()),
    )
    return context.home / "cache" / f"libvirt-{hashlib.sha256(repr(depends).encode()).hexdigest()[:24]}.json"


def _read(path: Path) -> Verdict | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Verdict)
    except (OSError, msgspec.DecodeError):
        return None


def _write(path: Path, verdict: Verdict) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(path, msgspec.json.encode(verdict))
