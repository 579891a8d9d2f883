"""Opens the backend."""

from __future__ import annotations

import shutil
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from iii_core.errors import BackendUnavailable
from iii_core.sandbox.host_processes import ProcessRecords
from iii_core.sandbox.hostclient import PROCESS_FOLDER
from iii_core.sandbox.launching import open_launched
from iii_sandbox_cloud_hypervisor.machine import CloudHypervisorLauncher
from iii_sandbox_cloud_hypervisor.policy import Patience

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from iii_core.records import OpenContext
    from iii_core.sandbox.port import SandboxDriver
    from iii_sandbox_cloud_hypervisor.policy import Settings


def find_program(settings: Settings, context: OpenContext) -> Path:
    """The VMM. Raises `BackendUnavailable`."""
    found = shutil.which(settings.program, path=context.environ.get("PATH"))
    if found is None:
        raise BackendUnavailable(
            f"{settings.program} is not installed",
            hint="put the static program of https://github.com/cloud-hypervisor/cloud-hypervisor/releases on PATH, "
            "or set `program` of the cloud-hypervisor backend",
        )
    return Path(found).absolute()


@asynccontextmanager
async def open_driver(
    settings: Settings, context: OpenContext, *, purpose: str = "chv", patience: Patience | None = None
) -> AsyncGenerator[SandboxDriver]:
    """Open the backend; all its sandboxes end with the block, their writable layers stay.

    One driver at a time for each ``purpose`` below a ``context.runtime_dir``: its folder there is emptied first, of
    what a killed predecessor left.

    Raises:
        BackendUnavailable: the VMM is not installed.
    """
    program = find_program(settings, context)
    base = context.runtime_dir / purpose
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir(mode=0o700, parents=True)
    try:
        async with open_launched(
            lambda nursery: CloudHypervisorLauncher(
                settings=settings,
                home=context.home,
                program=program,
                base=base,
                records=ProcessRecords(context.runtime_dir / PROCESS_FOLDER),
                nursery=nursery,
                patience=patience or Patience(),
            )
        ) as driver:
            yield driver
    finally:
        shutil.rmtree(base, ignore_errors=True)
