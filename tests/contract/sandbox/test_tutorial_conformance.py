"""The sandbox backend of the plugin author's guide passes the conformance kit, as the guide says."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from iii_core.host import PluginHost
from iii_core.records import OpenContext, SandboxBackend
from iii_core.sandbox.port import RootImage
from iii_core.testing import sandbox_kit
from iii_core.testing.sandbox_harness import SandboxesUnderTest
from iiitools.tutorials import install_tutorial

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxBackend]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(install_tutorial("iii-sandbox-mine", tmp_path_factory.mktemp("site"))))
        found = [item.record for item in PluginHost.create().declared(SandboxBackend) if item.record.name == "mine"]
        assert isinstance(found[0], SandboxBackend)
        yield found[0]
        for module in [name for name in sys.modules if name.startswith("iii_sandbox_mine")]:
            del sys.modules[module]


async def test_its_probe_tries_it(record: SandboxBackend, context: OpenContext) -> None:
    assert (await record.probe(record.config(), context)).ok
    nothing = OpenContext(
        state_dir=context.state_dir, runtime_dir=context.runtime_dir, home=context.home, environ={"PATH": "/nowhere"}
    )
    found = await record.probe(record.config(), nothing)
    assert not found.ok
    assert found.hint == "install bwrap"


@pytest.mark.parametrize("check", sandbox_kit.CHECKS, ids=lambda check: check.__name__)
async def test_conformance(
    check: sandbox_kit.Check, record: SandboxBackend, tiny_image: RootImage, context: OpenContext, tmp_path: Path
) -> None:
    folder = tmp_path / "sandboxes"
    folder.mkdir()
    await check(
        SandboxesUnderTest(
            open=lambda: record.open(record.config(), context),
            image=tiny_image,
            folder=folder,
            capabilities=record.capabilities,
        )
    )
