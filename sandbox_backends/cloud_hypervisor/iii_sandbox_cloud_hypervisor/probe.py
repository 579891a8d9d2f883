"""Whether guests boot here: found out by booting one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import trio
from iii_sandbox_guest.boot import VSOCK_LINK, Needs
from iii_sandbox_guest.prepare import prepare_boot
from iii_sandbox_guest.trial import boot_once, read_verdict, verdict_path, write_verdict

from iii_core.errors import BackendUnavailable, BootTimeout, IIIError
from iii_core.records import ProbeResult
from iii_sandbox_cloud_hypervisor.api import printable
from iii_sandbox_cloud_hypervisor.driver import find_program, open_driver
from iii_sandbox_cloud_hypervisor.policy import EXPERIMENTAL

if TYPE_CHECKING:
    from iii_core.records import OpenContext
    from iii_sandbox_cloud_hypervisor.policy import Settings

KVM: Final = Path("/dev/kvm")
DEADLINE: Final = 8.0
VERSION_TIMEOUT: Final = 5.0


class Verdict(msgspec.Struct, frozen=True):
    """``failure`` is why no guest boots; empty if one has booted."""

    failure: str = ""


async def probe(
    settings: Settings, context: OpenContext, *, kvm: Path = KVM, deadline: float = DEADLINE
) -> ProbeResult:
    """See `SandboxBackend.probe`. Never automatic: this backend is experimental.

    Args:
        settings: of the backend.
        context: of the backend.
        kvm: the device.
        deadline: seconds that a guest may take to boot.
    """
    try:
        program = find_program(settings, context)
        version = await find_version(program)
        check_kvm(kvm)
        await _check_boot(settings, context, program, deadline)
    except IIIError as error:
        return ProbeResult(ok=False, automatic=False, reason=error.message, hint=error.hint, details=error.details)
    return ProbeResult(
        ok=True,
        automatic=False,
        reason=EXPERIMENTAL,
        hint="to use it, set `sandbox: {backend: cloud-hypervisor}`",
        details={"version": version},
    )


async def find_version(program: Path) -> str:
    """What the VMM calls itself, such as ``cloud-hypervisor v48.0``. Raises `BackendUnavailable`."""
    try:
        with trio.fail_after(VERSION_TIMEOUT):
            done = await trio.run_process(
                [str(program), "--version"],
                stdin=subprocess.DEVNULL,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env={},
            )
    except (OSError, trio.TooSlowError) as error:
        raise BackendUnavailable(f"{program} --version fails: {printable(str(error)) or 'no answer'}") from error
    version = printable(done.stdout.decode(errors="replace"))
    if done.returncode != 0 or not version.startswith("cloud-hypervisor"):
        said = version or printable(done.stderr.decode(errors="replace"))
        raise BackendUnavailable(
            f"{program} is not Cloud Hypervisor: it says {said!r}",
            hint="set `program` of the cloud-hypervisor backend",
        )
    return version


def check_kvm(kvm: Path) -> None:
    """Raise `BackendUnavailable` unless the device may be opened. That a guest boots with it is another matter."""
    if not kvm.exists():
        raise BackendUnavailable(
            f"there is no {kvm}", hint="this processor or hypervisor does not offer virtualisation, or modprobe kvm"
        )
    if not os.access(kvm, os.R_OK | os.W_OK):
        raise BackendUnavailable(f"{kvm} may not be opened", hint="as root, add yourself to the group kvm")


async def _check_boot(settings: Settings, context: OpenContext, program: Path, deadline: float) -> None:
    """Boot a guest, unless it is known how that ends. Raises `IIIError` if it does not boot."""
    kept = await trio.to_thread.run_sync(_verdict_file, settings, context, program)
    verdict = read_verdict(kept, Verdict)
    if verdict is None:
        verdict = await _try(settings, context, deadline)
        await trio.to_thread.run_sync(write_verdict, kept, verdict)
    if verdict.failure:
        raise BackendUnavailable(verdict.failure, hint="it may do after a reboot or an update; that is tried then")


async def _try(settings: Settings, context: OpenContext, deadline: float) -> Verdict:
    """Raises what fails at once, and is worth another try each time: a guest that hangs is not."""
    try:
        await boot_once(context, lambda _: open_driver(settings, context, purpose="chvp"), deadline=deadline)
    except BootTimeout as error:
        return Verdict(f"{KVM} is there, but a guest does not boot with it: {error.message}")
    return Verdict()


def _verdict_file(settings: Settings, context: OpenContext, program: Path) -> Path:
    """Raises `BackendUnavailable` if there is no kernel for guests."""
    files = prepare_boot(context.home, needs=Needs(link=VSOCK_LINK), kernel=settings.kernel_path)
    return verdict_path(
        context.home,
        "cloud-hypervisor",
        files=(program, files.kernel, files.initramfs),
        settings=f"seccomp={settings.seccomp} landlock={settings.landlock}",
    )
