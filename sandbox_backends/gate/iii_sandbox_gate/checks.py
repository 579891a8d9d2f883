"""A row of ``iii doctor``: what ``network: egress`` needs of this machine. Never ``failed``: few workers ask for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from iii_core.records import CheckResult
from iii_sandbox_gate.needs import find_lack

if TYPE_CHECKING:
    from iii_core.records import OpenContext


async def check_gate(context: OpenContext) -> CheckResult:
    """Whether a sandbox can be let out: a gate is made, and thrown away."""
    lack = find_lack(context.environ)
    if lack is not None:
        return CheckResult(status="warning", message=f"no sandbox can have any: {lack.reason}", hint=lack.hint)
    await trio.lowlevel.checkpoint()
    return CheckResult(status="ok", message="can be given")
