"""Whether this machine can run bubblewrap sandboxes: by running one."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from iii_core.errors import BootFailed, IIIError
from iii_core.records import ProbeResult
from iii_sandbox_bubblewrap.keeper.identity import in_first_user_namespace
from iii_sandbox_bubblewrap.remedies import remedy

if TYPE_CHECKING:
    from iii_core.records import OpenContext
    from iii_core.sandbox.port import SandboxState
    from iii_sandbox_bubblewrap.policy import Settings

PROBE_TIMEOUT = 15.0


async def probe(settings: Settings, context: OpenContext) -> ProbeResult:
    """Boot a sandbox of an empty image, within `PROBE_TIMEOUT`; needs nothing but what a worker needs."""
    missing = _missing(settings, context)
    if missing is not None:
        return missing
    try:
        state = await _boot_one(settings, context)
    except IIIError as error:
        by_hand = f"see what it says by hand: {settings.program} --unshare-all --ro-bind / / true"
        hint = remedy(error.message) if isinstance(error, BootFailed) else error.hint
        return ProbeResult(ok=False, reason=error.message, hint=hint or by_hand, details=error.details)
    return ProbeResult(ok=True, details={"notes": list(state.notes)})


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


async def _boot_one(settings: Settings, context: OpenContext) -> SandboxState:
    from iii_sandbox_guest.trial import boot_once

    from iii_sandbox_bubblewrap.driver import open_driver

    return await boot_once(
        context,
        lambda folder: open_driver(settings, replace(context, runtime_dir=folder / "run")),
        deadline=PROBE_TIMEOUT,
    )
