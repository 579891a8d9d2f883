"""`MemoryBackend` passes the conformance kit that real backends pass."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from iii_core.records import OpenContext
from iii_core.sandbox.host import open_inline_host
from iii_core.sandbox.port import RootImage, SandboxDriver
from iii_core.testing import sandbox_kit
from iii_core.testing.memory_backend import CAPABILITIES, MemoryBackend
from iii_core.testing.memory_programs import COMMANDS
from iii_core.testing.sandbox_harness import SandboxesUnderTest


@pytest.mark.parametrize("check", sandbox_kit.CHECKS, ids=lambda check: check.__name__)
async def test_conformance(check: sandbox_kit.Check, context: OpenContext, tmp_path: Path) -> None:
    @asynccontextmanager
    async def open_driver() -> AsyncGenerator[SandboxDriver]:
        async with open_inline_host({"memory": MemoryBackend().record()}, context) as host:
            yield await host.driver("memory")

    folder = tmp_path / "sandboxes"
    folder.mkdir()
    image = RootImage(path=tmp_path / "none", format="squashfs", digest="sha256:" + "0" * 64)
    await check(
        SandboxesUnderTest(open=open_driver, image=image, folder=folder, capabilities=CAPABILITIES, commands=COMMANDS)
    )
