"""The real Cloud Hypervisor, wherever it is installed and guests boot with it: the whole conformance kit."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from iii_sandbox_cloud_hypervisor.driver import open_driver
from iii_sandbox_cloud_hypervisor.policy import CAPABILITIES, Settings
from iii_sandbox_cloud_hypervisor.probe import find_version, probe

from iii_core.records import OpenContext
from iii_core.sandbox.port import RootImage, SandboxDriver
from iii_core.testing import sandbox_kit

pytestmark = [
    pytest.mark.integration,
    pytest.mark.long,
    pytest.mark.timeout(180),
    pytest.mark.skipif(shutil.which("cloud-hypervisor") is None, reason="cloud-hypervisor is not installed"),
    pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="/dev/kvm cannot be opened"),
]


async def settings_that_work(context: OpenContext) -> Settings:
    """With Landlock where the kernel has it. Skips the test where no guest boots."""
    result = None
    for settings in (Settings(), Settings(landlock=False)):
        result = await probe(settings, context)
        if result.ok:
            return settings
    pytest.skip(f"no guest boots: {result.reason if result else ''}")


async def test_the_probe_boots_one(context: OpenContext) -> None:
    await settings_that_work(context)
    assert (await find_version(Path(str(shutil.which("cloud-hypervisor"))))).startswith("cloud-hypervisor")


@pytest.mark.parametrize("check", sandbox_kit.CHECKS, ids=lambda check: check.__name__)
async def test_conformance(check: sandbox_kit.Check, context: OpenContext, image: RootImage, tmp_path: Path) -> None:
    settings = await settings_that_work(context)

    @asynccontextmanager
    async def open_backend() -> AsyncGenerator[SandboxDriver]:
        async with open_driver(settings, context) as driver:
            yield driver

    folder = tmp_path / "sandboxes"
    folder.mkdir()
    await check(
        sandbox_kit.SandboxesUnderTest(open=open_backend, image=image, folder=folder, capabilities=CAPABILITIES)
    )
