"""iii-sandbox-libvirt: the hook implementations of this distribution."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from iii_core import hookimpl
from iii_core.records import Check, SandboxBackend
from iii_core.sandbox.port import Isolation
from iii_sandbox_libvirt.needs import find_lacks
from iii_sandbox_libvirt.policy import ALL_CAPABILITIES, Settings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from iii_core.records import OpenContext, ProbeResult
    from iii_core.sandbox.port import SandboxDriver


@hookimpl
def iii_sandbox_backends() -> Iterable[SandboxBackend]:
    """Declare the ``libvirt`` backend."""
    lacks = find_lacks(os.environ)
    yield SandboxBackend(
        name="libvirt",
        summary="virtual machines through libvirt and QEMU: a kernel of their own; KVM, or slow emulation",
        isolation=Isolation.MICROVM,
        strength=50,
        capabilities=ALL_CAPABILITIES - lacks.keys(),
        lacks=lacks,
        config=Settings,
        probe=_probe,
        open=_open,
    )


@asynccontextmanager
async def _open(settings: Settings, context: OpenContext) -> AsyncGenerator[SandboxDriver]:
    from iii_sandbox_libvirt.driver import open_driver
    from iii_sandbox_libvirt.probe import find_accelerator

    verdict = await find_accelerator(settings, context)
    async with open_driver(settings, context, verdict.accelerator) as driver:
        yield driver


async def _probe(settings: Settings, context: OpenContext) -> ProbeResult:
    from iii_sandbox_libvirt.probe import probe

    return await probe(settings, context)


@hookimpl
def iii_checks() -> Iterable[Check]:
    """Declare rows of ``iii doctor``."""
    from iii_sandbox_libvirt import checks

    yield Check(name="libvirt", run=checks.check_libvirt)
    yield Check(name="qemu", run=checks.check_qemu)
    yield Check(name="kvm", run=checks.check_kvm)
    yield Check(name="virtiofsd", run=checks.check_mounts)
