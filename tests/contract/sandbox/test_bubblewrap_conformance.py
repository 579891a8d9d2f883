"""The bubblewrap backend passes the sandbox conformance kit, inline and through the sandbox host process."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from iii_core.host import PluginHost
from iii_core.records import OpenContext, SandboxBackend
from iii_core.sandbox.host import SandboxHost, open_inline_host
from iii_core.sandbox.hostclient import open_sandbox_host
from iii_core.sandbox.port import Capability, RootImage, SandboxDriver
from iii_core.testing import sandbox_kit
from iii_core.testing.sandbox_harness import SandboxesUnderTest

pytestmark = pytest.mark.integration
BACKENDS = PluginHost.create().collect(SandboxBackend)
OpenHost = Callable[..., AbstractAsyncContextManager[SandboxHost]]


def _inline(context: OpenContext, config: dict[str, Any]) -> AbstractAsyncContextManager[SandboxHost]:
    return open_inline_host(BACKENDS, context, config)


def _process(context: OpenContext, config: dict[str, Any]) -> AbstractAsyncContextManager[SandboxHost]:
    return open_sandbox_host(context, config=config)


@pytest.mark.parametrize(
    ("open_host", "unprivileged"),
    [
        pytest.param(_inline, False, id="inline"),
        pytest.param(_inline, True, id="inline-fuse", marks=pytest.mark.long),  # ordinary users' tests have it as well
        pytest.param(_process, False, id="process"),
    ],
)
@pytest.mark.parametrize("check", sandbox_kit.CHECKS, ids=lambda check: check.__name__)
async def test_conformance(
    check: sandbox_kit.Check,
    open_host: OpenHost,
    unprivileged: bool,
    tiny_image: RootImage,
    context: OpenContext,
    tmp_path: Path,
) -> None:
    @asynccontextmanager
    async def open_driver() -> AsyncGenerator[SandboxDriver]:
        async with open_host(context, {"bubblewrap": {"unprivileged": unprivileged}}) as host:
            yield await host.driver("bubblewrap")

    folder = tmp_path / "sandboxes"
    folder.mkdir()
    capabilities = BACKENDS["bubblewrap"].capabilities
    if unprivileged and os.getuid() == 0:  # root inside is root outside then, and mounts nothing
        capabilities -= {Capability.MOUNTS, Capability.DISK_LIMIT}
    await check(SandboxesUnderTest(open=open_driver, image=tiny_image, folder=folder, capabilities=capabilities))
