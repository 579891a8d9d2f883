"""Rows of ``iii doctor``: the agent, and a kernel for virtual machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from iii_core.errors import BackendUnavailable
from iii_core.records import CheckResult
from iii_sandbox_guest.agent_program import agent_path
from iii_sandbox_guest.kernel import find_kernel

if TYPE_CHECKING:
    from iii_core.records import OpenContext


async def check_agent(_: OpenContext) -> CheckResult:
    """The program that is the init of every sandbox."""
    await trio.lowlevel.checkpoint()
    return CheckResult(status="ok", message=f"{agent_path()}")  # what it raises is the verdict


async def check_kernel(context: OpenContext) -> CheckResult:
    """A kernel to boot. That there is none matters to backends of virtual machines alone, which say so themselves."""
    try:
        kernel = await trio.to_thread.run_sync(find_kernel, context.home)
    except BackendUnavailable as error:
        return CheckResult(status="ok", message="none, which only virtual machines need", hint=error.hint)
    return CheckResult(status="ok", message=f"{kernel.release} in {kernel.image.parent}")
