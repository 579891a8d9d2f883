"""The code of the documentation runs: plugins are found as installed ones are, kits pass, a program prints its sum."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from iii_core.errors import ImageError, ImageNotFound
from iii_core.host import PluginHost
from iii_core.images.port import ImageResolver, Progress
from iii_core.records import OpenContext, RegistryResolver, SandboxBackend, Transport
from iii_core.testing import transport_kit
from iii_core.transport.port import MessageTransport
from iiitools.tutorials import GUIDE, install_tutorial, tutorial_files
from iiitools.worktree import ROOT, source_files

MAX_LINES = 200

Install = Callable[[str], PluginHost]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a distribution of the guide, and give a host that has found it."""
    before = set(sys.modules)

    def install(name: str) -> PluginHost:
        monkeypatch.syspath_prepend(str(install_tutorial(name, tmp_path / "site")))
        host = PluginHost.create()
        assert {info.status for info in host.plugins if info.distribution == name} == {"loaded"}
        return host

    yield install
    for module in set(sys.modules) - before:
        del sys.modules[module]


@pytest.fixture
def context(tmp_path: Path) -> OpenContext:
    return OpenContext(state_dir=tmp_path, runtime_dir=tmp_path, home=tmp_path, environ=dict(os.environ))


def test_every_python_block_compiles() -> None:
    names = [name for name in tutorial_files() if name.endswith(".py")]
    assert len(names) >= 5
    for name in names:
        compile(tutorial_files()[name], f"{GUIDE.name}:{name}", "exec")


@pytest.mark.parametrize("name", [name for name in tutorial_files() if name.startswith("examples/")])
def test_the_example_is_what_the_guide_shows(name: str) -> None:
    assert tutorial_files()[name] == (ROOT / name).read_text(encoding="utf-8")


def test_nothing_of_the_example_is_left_out() -> None:
    shown = {name for name in tutorial_files() if name.startswith("examples/iii-sandbox-mine/")}
    sources = source_files(".py", ".toml", below=ROOT / "examples" / "iii-sandbox-mine")
    assert shown == {str(path.relative_to(ROOT)) for path in sources if path.stat().st_size}


def test_the_sandbox_backend_is_short_and_is_found(install: Install) -> None:
    files = source_files(".py", below=ROOT / "examples" / "iii-sandbox-mine")
    assert 50 < sum(len(path.read_text().splitlines()) for path in files) <= MAX_LINES
    host = install("iii-sandbox-mine")
    record = next(item.record for item in host.declared(SandboxBackend) if item.record.name == "mine")
    assert isinstance(record, SandboxBackend)
    assert "iii_sandbox_mine.launcher" not in sys.modules  # importing a plugin is cheap
    assert record.config().tmp_mib == 256


class TestRegistry:
    @asynccontextmanager
    async def open(self, host: PluginHost, context: OpenContext) -> AsyncGenerator[ImageResolver]:
        record = host.collect(RegistryResolver)["squashfs"]
        assert record.accepts("squashfs:x")
        assert not record.accepts("ghcr.io/x/y:1")
        async with record.open(record.config(), context) as resolver:
            yield resolver

    async def test_fetch(self, install: Install, context: OpenContext, tmp_path: Path) -> None:
        (tmp_path / "hello.squashfs").write_bytes(b"hsqs")
        (tmp_path / "hello.squashfs.json").write_text('{"command": ["/bin/hello"], "env": {"A": "1"}}')
        steps: list[Progress] = []
        async with self.open(install("iii-registry-mine"), context) as resolver:
            image = await resolver.fetch(f"squashfs:{tmp_path}/hello.squashfs", refresh=False, progress=steps.append)
            assert await resolver.stored(image.reference) == image
        assert (image.name, image.size, image.config.entrypoint) == ("hello", 4, ("/bin/hello",))
        assert image.config.env == (("A", "1"),)
        assert [step.stage for step in steps] == ["resolving"]

    async def test_refusals(self, install: Install, context: OpenContext, tmp_path: Path) -> None:
        (tmp_path / "a.squashfs").write_bytes(b"hsqs")
        (tmp_path / "a.squashfs.json").write_text("[]")
        async with self.open(install("iii-registry-mine"), context) as resolver:
            with pytest.raises(ImageNotFound):
                await resolver.fetch("squashfs:nope", refresh=False, progress=lambda _: None)
            with pytest.raises(ImageError, match="does not describe a worker"):
                await resolver.fetch(f"squashfs:{tmp_path}/a.squashfs", refresh=False, progress=lambda _: None)
            assert await resolver.stored("squashfs:nope") is None


@pytest.mark.parametrize("check", transport_kit.CHECKS, ids=lambda check: check.__name__)
async def test_the_transport_passes_its_kit(check: transport_kit.Check, install: Install, context: OpenContext) -> None:
    record = install("iii-plugin-counted").collect(Transport)["counted"]

    @asynccontextmanager
    async def opened() -> AsyncGenerator[MessageTransport]:
        async with record.open(record.config(), context) as transport:
            yield transport

    await check(
        transport_kit.TransportUnderTest(
            open=opened, url=lambda address, target: f"memory://{address.host}:{address.port}{target}"
        )
    )


def test_the_embedding_program_prints_its_sum(tmp_path: Path) -> None:
    program = tmp_path / "embedding.py"
    program.write_text(tutorial_files()["embedding.py"])
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "{'sum': 5}\n", "")
