"""Whether this machine can run bubblewrap sandboxes: by running one."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from iii_core.errors import BootFailed, IIIError
from iii_core.records import ProbeResult
from iii_core.sandbox.port import RootImage, SandboxSpec
from iii_sandbox_bubblewrap.keeper.identity import in_first_user_namespace
from iii_sandbox_bubblewrap.remedies import remedy

if TYPE_CHECKING:
    from iii_core.records import OpenContext
    from iii_sandbox_bubblewrap.policy import Settings

PROBE_TIMEOUT = 15.0


async def probe(settings: Settings, context: OpenContext) -> ProbeResult:
    """Boot a sandbox of an empty image, within `PROBE_TIMEOUT`; needs nothing but what a worker needs."""
    missing = _missing(settings, context)
    if missing is not None:
        return missing
    with tempfile.TemporaryDirectory(prefix="probe-", dir=_folder(context)) as name, trio.move_on_after(PROBE_TIMEOUT):
        try:
            notes = await _boot_one(settings, context, Path(name))
        except IIIError as error:
            by_hand = f"see what it says by hand: {settings.program} --unshare-all --ro-bind / / true"
            hint = remedy(error.message) if isinstance(error, BootFailed) else error.hint
            return ProbeResult(ok=False, reason=error.message, hint=hint or by_hand, details=error.details)
        return ProbeResult(ok=True, details={"notes": list(notes)})
    return ProbeResult(
        ok=False,
        reason=f"a sandbox did not come up within {PROBE_TIMEOUT:g} s",
        hint="is the machine overloaded? the sandbox host's log may say more",
    )


def _missing(settings: Settings, context: OpenContext) -> ProbeResult | None:
    path = context.environ.get("PATH")
    if shutil.which(settings.program, path=path) is None:
        return ProbeResult(ok=False, reason=f"{settings.program} is not installed", hint="apt install bubblewrap")
    if os.geteuid() == 0 and in_first_user_namespace() and not settings.unprivileged:
        return None
    if not any(shutil.which(name, path=path) for name in ("squashfuse_ll", "squashfuse")):
        return ProbeResult(ok=False, reason="squashfuse is not installed", hint="apt install squashfuse")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        exists = Path("/dev/fuse").exists()
        return ProbeResult(
            ok=False,
            reason="/dev/fuse may not be opened" if exists else "there is no /dev/fuse",
            hint="as root: chmod 666 /dev/fuse" if exists else "as root: modprobe fuse",
        )
    return None


def _folder(context: OpenContext) -> Path:
    context.runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    return context.runtime_dir


async def _boot_one(settings: Settings, context: OpenContext, folder: Path) -> tuple[str, ...]:
    from iii_sandbox_guest.emptyimage import write_empty_image

    from iii_sandbox_bubblewrap.driver import open_driver

    image = folder / "empty.squashfs"
    write_empty_image(image)
    spec = SandboxSpec(
        id="probe",
        root=RootImage(path=image, format="squashfs", digest=""),
        writable_dir=folder / "layer",
        console=folder / "console",
        hostname="probe",
    )
    async with open_driver(settings, replace(context, runtime_dir=folder / "run")) as driver:
        await driver.create(spec)
        await driver.start(spec.id)
        notes = (await driver.state(spec.id)).notes
        await driver.destroy(spec.id, keep_writable=False)
    return notes
