"""Opens the backend."""

from __future__ import annotations

import shutil
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from iii_core.errors import BackendUnavailable
from iii_core.sandbox.launching import open_launched
from iii_sandbox_bubblewrap.machine import BubblewrapLauncher
from iii_sandbox_bubblewrap.seccomp import filter_program

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from iii_core.records import OpenContext
    from iii_core.sandbox.port import SandboxDriver
    from iii_sandbox_bubblewrap.policy import Settings


@asynccontextmanager
async def open_driver(settings: Settings, context: OpenContext) -> AsyncGenerator[SandboxDriver]:
    """Open the backend; all its sandboxes end with the block, their writable layers stay.

    Raises:
        BackendUnavailable: bwrap or the guest agent is missing, or namespaces cannot be made.
    """
    from iii_sandbox_guest import agent_path

    bwrap = shutil.which(settings.program, path=context.environ.get("PATH"))
    if bwrap is None:
        raise BackendUnavailable(f"{settings.program} is not installed", hint="apt install bubblewrap")
    program = filter_program()
    agent = agent_path()
    async with open_launched(
        lambda nursery: BubblewrapLauncher(settings, context, nursery, agent=agent, bwrap=bwrap, program=program)
    ) as driver:
        yield driver
