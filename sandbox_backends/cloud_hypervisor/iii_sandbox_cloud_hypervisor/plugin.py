"""iii-sandbox-cloud-hypervisor: the hook implementations of this distribution."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from iii_core import hookimpl
from iii_core.records import Check, SandboxBackend
from iii_core.sandbox.port import Isolation
from iii_sandbox_cloud_hypervisor.policy import CAPABILITIES, Settings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from iii_core.records import OpenContext, ProbeResult
    from iii_core.sandbox.port import SandboxDriver


@hookimpl
def iii_sandbox_backends() -> Iterable[SandboxBackend]:
    """Declare the ``cloud-hypervisor`` backend."""
    yield SandboxBackend(
        name="cloud-hypervisor",
        summary="virtual machines through Cloud Hypervisor and KVM: a kernel of their own (experimental)",
        isolation=Isolation.MICROVM,
        strength=40,
        capabilities=CAPABILITIES,
        config=Settings,
        probe=_probe,
        open=_open,
    )


@asynccontextmanager
async def _open(settings: Settings, context: OpenContext) -> AsyncGenerator[SandboxDriver]:
    from iii_sandbox_cloud_hypervisor.driver import open_driver

    async with open_driver(settings, context) as driver:
        yield driver


async def _probe(settings: Settings, context: OpenContext) -> ProbeResult:
    from iii_sandbox_cloud_hypervisor.probe import probe

    return await probe(settings, context)


@hookimpl
def iii_checks() -> Iterable[Check]:
    """Declare a row of ``iii doctor``."""
    from iii_sandbox_cloud_hypervisor import checks

    yield Check(name="cloud-hypervisor", run=checks.check_cloud_hypervisor)
