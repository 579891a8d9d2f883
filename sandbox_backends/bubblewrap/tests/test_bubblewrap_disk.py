"""A writable layer with a size of its own: a file system in a file, which only root of the machine may mount."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from iii_core.errors import BootFailed, SandboxError, UnsupportedOperation
from iii_core.sandbox.port import Limits, SandboxSpec
from iii_core.testing.sandbox_harness import agent_of, run, run_well

from .bwrapkit import Bench

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system in a file"),
]
FILL = "dd if=/dev/zero of=/junk bs=1M count={mib} 2>&1"


def sized(bench: Bench, mib: int | None) -> SandboxSpec:
    return replace(bench.spec(), limits=Limits(disk_mib=mib))


def backing_files() -> set[str]:
    """What the machine's loop devices hold."""
    found: set[str] = set()
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):  # it has been let go of meanwhile
            found.add(file.read_text(encoding="utf-8", errors="replace").split(" (deleted)")[0].strip())
    return found


async def test_what_is_full_is_full_and_room_comes_back(bench: Bench) -> None:
    spec = sized(bench, 64)
    disk = spec.writable_dir / "data.img"
    async with bench.sandbox(spec) as (driver, agent):
        for _ in range(3):
            status, printed = await run(agent, ("/bin/sh", "-c", FILL.format(mib=80)))
            assert status.as_shell() != 0
            assert "No space left" in printed
            await run_well(agent, ("/bin/rm", "/junk"))
            await run_well(agent, ("/bin/sh", "-c", FILL.format(mib=40)))
        assert disk.stat().st_size == 64 << 20
        flags = await run_well(agent, ("/bin/grep", " / overlay ", "/proc/mounts"))
        assert "nosuid,nodev" in flags
        assert str(disk) in backing_files()
        await driver.destroy(spec.id, keep_writable=False)
    assert not list(bench.folder.glob("*.layer*"))
    with trio.fail_after(30):
        while str(disk) in backing_files():  # noqa: ASYNC110  # the kernel's own tidying has no event
            await trio.sleep(0.01)


async def test_what_was_written_last_survives_kills(bench: Bench) -> None:
    """Not a word of ``sync``, and the next boot while the last one's disk is still being written back."""
    spec = sized(bench, 64)
    async with bench.driver() as driver:
        await driver.create(spec)
        for number in range(6):
            await driver.start(spec.id)
            async with agent_of(driver, spec.id) as agent:
                if number:
                    assert await run_well(agent, ("/bin/cat", "/mark")) == f"{number - 1}\n"
                await run_well(agent, ("/bin/sh", "-c", f"{FILL.format(mib=30)}; echo {number} > /mark"))
                await driver.stop(spec.id, grace=0)


async def test_a_layer_may_grow_and_not_shrink(bench: Bench) -> None:
    """Who asks for no size gets what is there."""
    async with bench.sandbox(sized(bench, 64)) as (_, agent):
        await run_well(agent, ("/bin/sh", "-c", "echo kept > /mark"))
    async with bench.sandbox(sized(bench, 128)) as (_, agent):
        assert await run_well(agent, ("/bin/cat", "/mark")) == "kept\n"
        await run_well(agent, ("/bin/sh", "-c", f"{FILL.format(mib=80)}; rm /junk"))
    async with bench.driver() as driver:
        with pytest.raises(SandboxError, match="cannot shrink to 64 MiB") as caught:
            await driver.create(sized(bench, 64))
        assert "disk: 128Mi" in (caught.value.hint or "")
    async with bench.sandbox(sized(bench, None)) as (_, agent):
        assert await run_well(agent, ("/bin/cat", "/mark")) == "kept\n"
        status, _ = await run(agent, ("/bin/sh", "-c", FILL.format(mib=150)))
        assert status.as_shell() != 0


async def test_a_layer_without_a_size_gets_none(bench: Bench) -> None:
    """Its contents would be out of sight."""
    async with bench.sandbox(sized(bench, None)) as (_, agent):
        await run_well(agent, ("/bin/sh", "-c", "echo kept > /mark"))
    async with bench.driver() as driver:
        with pytest.raises(SandboxError, match="made without a size"):
            await driver.create(sized(bench, 64))
    async with bench.sandbox(sized(bench, None)) as (_, agent):
        assert await run_well(agent, ("/bin/cat", "/mark")) == "kept\n"


async def test_a_disk_without_a_file_system(bench: Bench) -> None:
    spec = sized(bench, 64)
    async with bench.driver() as driver:
        await driver.create(spec)
        await trio.Path(spec.writable_dir / "data.img").write_bytes(bytes(64 << 20))
        with pytest.raises(BootFailed, match="mount: ") as caught:
            await driver.start(spec.id)
        assert "remove the worker and add it again" in (caught.value.hint or "")


async def test_not_without_the_right_to_mount(bench: Bench) -> None:
    async with bench.driver(mode="fuse") as driver:
        with pytest.raises(UnsupportedOperation, match="as root of this machine") as caught:
            await driver.create(sized(bench, 64))
        assert caught.value.hint
    assert not list(bench.folder.iterdir())
