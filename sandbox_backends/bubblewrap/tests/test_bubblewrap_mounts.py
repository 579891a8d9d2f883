"""Folders of the machine, seen from inside; and all that is refused."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from iii_core.errors import BootFailed, SandboxError, UnsupportedOperation
from iii_core.sandbox.ids import SANDBOX_IDS
from iii_core.sandbox.port import Mount, RootImage, SandboxSpec
from iii_core.testing.sandbox_harness import TESTS, agent_of, run, run_well

from .bwrapkit import Bench

pytestmark = pytest.mark.integration
of_root = pytest.mark.skipif(os.geteuid() != 0, reason="in the sandboxes of an ordinary user root is that user")


@pytest.fixture
def shown(tmp_path: Path) -> Path:
    """A folder with an awkward name, and another file system below it."""
    folder = tmp_path / "a b,c:d"
    (folder / "below").mkdir(parents=True)
    (folder / "hello").write_text("from outside", encoding="utf-8")
    folder.chmod(0o777)
    return folder


@pytest.fixture
def nested(shown: Path) -> Generator[Path]:
    below = shown / "below"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0777", TESTS, below], check=True)
    (below / "deep").write_text("deep", encoding="utf-8")
    yield shown
    subprocess.run(["umount", below], check=True)


def with_mounts(bench: Bench, *mounts: Mount, image: RootImage | None = None) -> SandboxSpec:
    return replace(bench.spec(image=image), mounts=mounts)


@of_root
async def test_what_is_seen(bench: Bench, nested: Path) -> None:
    spec = with_mounts(
        bench,
        Mount(source=nested, target="/data"),
        Mount(source=nested, target="/tmp/rw", writable=True),  # the sandbox's own
        Mount(source=nested, target="/run/x/y"),
    )
    async with bench.sandbox(spec) as (driver, agent):
        for target in ("/data", "/run/x/y", "/tmp/rw"):
            assert await run_well(agent, ("/bin/cat", f"{target}/hello", f"{target}/below/deep")) == "from outsidedeep"
        rows = (line.split() for line in (await run_well(agent, ("/bin/cat", "/proc/mounts"))).splitlines())
        flags = {row[1]: set(row[3].split(",")) for row in rows}
        for target in ("/data", "/data/below", "/run/x/y", "/tmp/rw", "/tmp/rw/below"):
            assert flags[target] >= {"nosuid", "nodev", "rw" if target.startswith("/tmp") else "ro"}, target
        for path in ("/data/x", "/data/below/x", "/run/x/y/below/x"):
            status, printed = await run(agent, ("/bin/touch", path))
            assert status.as_shell() != 0
            assert "Read-only" in printed
        await run_well(agent, ("/bin/touch", "/tmp/rw/mine", "/tmp/rw/below/mine"))
        assert (nested / "mine").stat().st_uid == SANDBOX_IDS
        notes = " ".join((await driver.state(spec.id)).notes)
        assert f"user id {SANDBOX_IDS} of this machine" in notes


@of_root
async def test_rights_are_those_of_the_sandbox(bench: Bench, shown: Path) -> None:
    """What only root of the machine may read or write is not readable or writable through a mount."""
    await trio.Path(shown).chmod(0o755)
    await trio.Path(shown / "secret").touch(mode=0o600)
    async with bench.sandbox(with_mounts(bench, Mount(source=shown, target="/data", writable=True))) as (_, agent):
        for argv in (("/bin/cat", "/data/secret"), ("/bin/touch", "/data/x"), ("/bin/rm", "/data/hello")):
            status, printed = await run(agent, argv)
            assert status.as_shell() != 0
            assert "denied" in printed


async def test_a_mount_point_stays_in_the_layer(bench: Bench, shown: Path) -> None:
    """As an empty folder, and the next boot without the mount is none the worse."""
    async with bench.sandbox(with_mounts(bench, Mount(source=shown, target="/mnt/a/b"))):
        pass
    async with bench.sandbox() as (_, agent):
        assert await run_well(agent, ("/bin/ls", "/mnt/a/b")) == ""


@pytest.mark.parametrize(
    ("arrange", "target"),
    [
        (lambda root: (root / "mnt").symlink_to("/tmp"), "/mnt/x"),
        (lambda root: (root / "mnt").symlink_to("/oldroot/etc"), "/mnt"),
        (lambda root: (root / "mnt").touch(), "/mnt"),
        (lambda root: (root / "mnt").touch(), "/mnt/x/y"),
    ],
)
async def test_the_image_cannot_lead_a_mount_elsewhere(
    bench: Bench, make_image: Callable[..., RootImage], shown: Path, arrange: Callable[[Path], None], target: str
) -> None:
    spec = with_mounts(bench, Mount(source=shown, target=target), image=make_image(arrange))
    async with bench.driver() as driver:
        await driver.create(spec)
        with pytest.raises(BootFailed, match=f"nothing can be mounted on {target}: mnt is a link or file"):
            await driver.start(spec.id)


async def test_a_worker_cannot_lead_the_next_boot_elsewhere(bench: Bench, shown: Path) -> None:
    spec = with_mounts(bench, Mount(source=shown, target="/mnt/x"))
    async with bench.driver() as driver:
        await driver.create(spec)
        await driver.start(spec.id)
        async with agent_of(driver, spec.id) as agent:
            await run_well(agent, ("/bin/ln", "-s", "/etc", "/leads"))
            status, _ = await run(agent, ("/bin/rm", "-rf", "/mnt/x"))
            assert status.as_shell() != 0
        await driver.destroy(spec.id, keep_writable=True)
        await driver.create(with_mounts(bench, Mount(source=shown, target="/leads/x")))
        with pytest.raises(BootFailed, match="leads is a link or file"):
            await driver.start(spec.id)
    assert (shown / "hello").exists()


async def test_a_source_that_became_a_link(bench: Bench, shown: Path) -> None:
    """Between ``create`` and ``start``: the link is followed to where it leads now, which is looked at again."""
    spec = with_mounts(bench, Mount(source=shown, target="/data"))
    async with bench.driver() as driver:
        await driver.create(spec)
        await trio.Path(shown).rename(shown.with_name("moved"))
        with pytest.raises(SandboxError, match=r"cannot be mounted: .*No such file"):
            await driver.start(spec.id)
        await trio.Path(shown).symlink_to("/proc")
        with pytest.raises(SandboxError, match="/proc may not be seen inside"):
            await driver.start(spec.id)


async def test_private_folders(bench: Bench) -> None:
    spec = bench.spec()
    context = bench.context
    private = (context.home, context.state_dir, context.runtime_dir, spec.writable_dir, spec.writable_dir.parent)
    async with bench.driver() as driver:
        for source in private:
            source.mkdir(exist_ok=True, parents=True)
            with pytest.raises(SandboxError, match="may not be seen inside"):
                await driver.create(with_mounts(bench, Mount(source=source, target="/data")))


@of_root
async def test_not_where_root_inside_is_root_outside(bench: Bench, shown: Path) -> None:
    """It could leave a set-user-ID program of root's in the folder."""
    spec = with_mounts(bench, Mount(source=shown, target="/data"))
    async with bench.driver(mode="fuse") as driver:
        with pytest.raises(UnsupportedOperation, match="root of this machine") as caught:
            await driver.create(spec)
        assert caught.value.hint
    async with bench.driver(mode="identity") as driver:
        await driver.create(spec)
        with pytest.raises(SandboxError, match="root of this machine"):
            await driver.start(spec.id)
