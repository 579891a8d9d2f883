"""The libvirt backend passes the sandbox conformance kit, in virtual machines that really boot."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from iii_core.host import PluginHost
from iii_core.records import OpenContext, SandboxBackend
from iii_core.sandbox.hostclient import open_sandbox_host
from iii_core.sandbox.port import RootImage, SandboxDriver
from iii_core.testing import sandbox_kit

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(600)]


@pytest.mark.parametrize("check", sandbox_kit.CHECKS, ids=lambda check: check.__name__)
async def test_conformance(
    check: sandbox_kit.Check, tiny_image: RootImage, guest_kernel_home: Path, context: OpenContext, tmp_path: Path
) -> None:
    backends = PluginHost.create(environ={}).collect(SandboxBackend)
    context = replace(context, home=guest_kernel_home)

    @asynccontextmanager
    async def open_backend() -> AsyncGenerator[SandboxDriver]:
        async with open_sandbox_host(context, config={"libvirt": {"accelerator": "tcg"}}) as host:
            yield await host.driver("libvirt")

    folder = tmp_path / "sandboxes"
    folder.mkdir()
    await check(
        sandbox_kit.SandboxesUnderTest(
            open=open_backend, image=tiny_image, folder=folder, capabilities=backends["libvirt"].capabilities
        )
    )
