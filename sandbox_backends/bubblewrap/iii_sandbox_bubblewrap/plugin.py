"""iii-sandbox-bubblewrap: the hook implementations of this distribution."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from iii_sandbox_gate.needs import find_lack

from iii_core import hookimpl
from iii_core.records import Check, SandboxBackend
from iii_core.sandbox.port import Capability, Isolation
from iii_sandbox_bubblewrap.policy import Settings, capabilities

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractAsyncContextManager

    from iii_core.records import OpenContext, ProbeResult
    from iii_core.sandbox.port import SandboxDriver


@hookimpl
def iii_sandbox_backends() -> Iterable[SandboxBackend]:
    """Declare the ``bubblewrap`` backend."""
    lack = find_lack(os.environ)
    yield SandboxBackend(
        name="bubblewrap",
        summary="Linux namespaces through bubblewrap: starts in milliseconds, shares the machine's kernel",
        isolation=Isolation.NAMESPACES,
        strength=20,
        capabilities=capabilities(lack),
        lacks={Capability.EGRESS: lack} if lack else {},
        config=Settings,
        probe=_probe,
        open=_open,
    )


def _open(settings: Settings, context: OpenContext) -> AbstractAsyncContextManager[SandboxDriver]:
    from iii_sandbox_bubblewrap.driver import open_driver

    return open_driver(settings, context)


async def _probe(settings: Settings, context: OpenContext) -> ProbeResult:
    from iii_sandbox_bubblewrap.probe import probe

    return await probe(settings, context)


@hookimpl
def iii_checks() -> Iterable[Check]:
    """Declare rows of ``iii doctor``."""
    from iii_sandbox_bubblewrap import checks

    yield Check(name="bwrap", run=checks.check_bwrap)
    yield Check(name="namespaces", run=checks.check_namespaces)
    yield Check(name="squashfuse", run=checks.check_squashfuse)
    yield Check(name="fuse", run=checks.check_fuse)
    yield Check(name="subordinate-ids", run=checks.check_subordinate_ids)
