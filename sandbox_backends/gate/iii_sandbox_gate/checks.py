"""A row of ``iii doctor``: what ``network: egress`` needs of this machine. Never ``failed``: few workers ask for it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from iii_core.errors import SandboxError
from iii_core.link.nursery import open_service_nursery
from iii_core.records import CheckResult
from iii_core.sandbox.launcher import LaunchFailed
from iii_core.sandbox.port import Egress
from iii_sandbox_gate.machinegate import start_machine_gate
from iii_sandbox_gate.needs import find_lack
from iii_sandbox_gate.plan import plan_gate

if TYPE_CHECKING:
    from iii_core.records import OpenContext

KERNEL_HINT: Final = "as root: modprobe -a nft_ct nft_masq nft_reject_inet; a container must be allowed to use nftables"
_MOST_WORDS: Final = 2000


async def check_gate(context: OpenContext) -> CheckResult:
    """Whether a sandbox can be let out: a gate is made, and thrown away."""
    lack = find_lack(context.environ)
    if lack is not None:
        return _none(lack.reason, lack.hint)
    problem = await _try_one(context)
    if problem is not None:
        return _none(problem, KERNEL_HINT)
    return CheckResult(status="ok", message="sandboxes can be let out (network: egress)")


async def _try_one(context: OpenContext) -> str | None:
    """What went wrong, and what its programs said last."""
    said = os.memfd_create("gate")
    try:
        async with open_service_nursery() as nursery:
            plan = plan_gate(Egress(), context.environ, machine=True)
            gate = await start_machine_gate(plan, nursery=nursery, console=said)
            await gate.end()
    except (LaunchFailed, SandboxError) as error:
        words = os.pread(said, _MOST_WORDS, 0).decode(errors="replace").strip().splitlines()
        return f"{error} ({words[-1]})" if words else str(error)
    finally:
        os.close(said)
    return None


def _none(reason: str, hint: str) -> CheckResult:
    return CheckResult(status="warning", message=f"no sandbox can be let out: {reason}", hint=hint)
