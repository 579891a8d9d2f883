"""Saving a running guest, and restoring it: it goes on where it was, with a clock that is right and luck of its own."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
import trio

from iii_core.errors import SandboxError, SnapshotUnusable
from iii_core.sandbox.agent import Agent
from iii_core.sandbox.port import Limits, Phase, SandboxDriver, Snapshots
from iii_core.testing.sandbox_harness import run, run_well

from .vmkit import Bench, agent_of, qemus

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(400)]
AFTERWARDS = "/workspace/afterwards"
COUNT = "i=0; while :; do i=$((i+1)); echo $i > /workspace/count; sleep 0.1; done"


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def count(agent: Agent) -> int:
    """How far the counter is; it may be caught while it writes."""
    while not (printed := (await run_well(agent, ("/bin/cat", "/workspace/count"))).strip()):
        pass
    return int(printed)


async def runs_on(agent: Agent) -> int:
    """Wait until it counts on; how far it was."""
    first = await count(agent)
    with trio.fail_after(40):
        while await count(agent) <= first:
            pass
    return first


async def is_older(agent: Agent) -> bool:
    """Whether this is from before `AFTERWARDS`."""
    return (await run(agent, ("/bin/stat", AFTERWARDS)))[0].as_shell() != 0


async def luck(agent: Agent) -> str:
    """Bytes of the kernel's random number generator."""
    return await run_well(agent, ("/bin/sh", "-c", "head -c 16 /dev/urandom | od -An -tx1"))


async def check_clock(agent: Agent) -> None:
    begun = time.time()
    told = float(await run_well(agent, ("/bin/date", "+%s")))
    assert begun - 5 < told < time.time() + 5


async def test_save_and_restore(bench: Bench, tmp_path: Path) -> None:
    """One story, of few boots: saved while it runs on, restored as two others at once, and into itself."""
    state = tmp_path / "saved"
    with bench.nothing_remains():
        async with bench.driver() as driver:
            assert isinstance(driver, Snapshots)
            await driver.create(bench.spec())
            await driver.start("box")
            async with agent_of(driver, "box") as agent:
                await run_well(agent, ("/bin/setsid", "/bin/sh", "-c", f"({COUNT}) </dev/null >/dev/null 2>&1 &"))
                with trio.fail_after(40):
                    while (await run(agent, ("/bin/cat", "/workspace/count")))[0].as_shell():
                        pass
                counted = await count(agent)
                pid = (await driver.state("box")).pid
                await driver.save("box", state)
                with trio.fail_after(40):
                    await agent.wait_closed()  # its link broke
            assert (await driver.state("box")).pid == pid
            async with agent_of(driver, "box", resync=True) as agent:
                assert await runs_on(agent) >= counted
                await run_well(agent, ("/bin/touch", AFTERWARDS))
            assert names_in(state) == ["data.img", "manifest.json", "memory"]
            with pytest.raises(SandboxError, match="exists already"):
                await driver.save("box", state)
            await restore_two(bench, driver, state, counted)
            await driver.stop("box", grace=0)
            await driver.restore("box", state)
            async with agent_of(driver, "box", resync=True) as agent:
                assert await is_older(agent)
                assert await runs_on(agent) >= counted
            await driver.destroy("box", keep_writable=False)


async def restore_two(bench: Bench, driver: SandboxDriver, state: Path, counted: int) -> None:
    assert isinstance(driver, Snapshots)
    drawn: list[str] = []
    for name in ("one", "two"):
        await driver.create(bench.spec(name))
        await driver.restore(name, state)
        assert (await driver.state(name)).phase is Phase.RUNNING
    for name in ("one", "two"):
        async with agent_of(driver, name, resync=True) as agent:
            drawn.append(await luck(agent))
            await check_clock(agent)
            assert await is_older(agent)
            assert await runs_on(agent) >= counted, "what ran before goes on"
            await run_well(agent, ("/bin/sh", "-c", f"echo {name} > /workspace/mine; sync"))
    assert drawn[0] != drawn[1]
    assert len(qemus()) == 3
    for name in ("one", "two"):
        await driver.destroy(name, keep_writable=False)


async def test_what_cannot_be_restored(bench: Bench, tmp_path: Path) -> None:
    """Damage and strangers are told apart from what fits; the sandbox keeps its disk and can be started."""
    state = tmp_path / "saved"
    with bench.nothing_remains():
        async with bench.driver() as driver:
            assert isinstance(driver, Snapshots)
            await driver.create(bench.spec())
            with pytest.raises(SandboxError, match="does not run"):
                await driver.save("box", state)
            assert not state.exists()
            await driver.start("box")
            await driver.save("box", state)
            with pytest.raises(SandboxError, match="runs already"):
                await driver.restore("box", state)
            await driver.stop("box", grace=0)
            for name, words in damages(state, tmp_path).items():
                with pytest.raises(SnapshotUnusable, match=words) as caught:
                    await driver.restore("box", tmp_path / name)
                assert caught.value.code == "W238"
                assert caught.value.hint
                assert names_in(bench.spec().writable_dir) == ["data.img"]
            await driver.create(bench.spec("other", limits=Limits(memory_mib=256, disk_mib=64)))
            with pytest.raises(SnapshotUnusable, match="memory_mib: 192, now 256"):
                await driver.restore("other", state)
            await driver.start("box")
            async with agent_of(driver, "box") as agent:
                await run_well(agent, ("/bin/id", "-u"))


def damages(state: Path, folder: Path) -> dict[str, str]:
    """Spoiled copies, and what is said of each."""

    def spoil(name: str, file: str, at: int, data: bytes | None) -> None:
        shutil.copytree(state, folder / name)
        path = folder / name / file
        if data is None:
            os.truncate(path, at)
            return
        with path.open("r+b") as opened:
            opened.seek(at)
            opened.write(data)

    size = (state / "memory").stat().st_size
    spoil("flipped", "memory", size // 2, b"\xff\x00\xff")
    spoil("short", "memory", size // 2, None)
    spoil("empty", "memory", 0, None)
    spoil("foreign", "memory", 0, b"Something else")
    spoil("garbled", "manifest.json", 0, b"}{")
    spoil("small-disk", "data.img", 4096, None)
    text = (state / "manifest.json").read_text(encoding="utf-8")
    shutil.copytree(state, folder / "newer")
    (folder / "newer" / "manifest.json").write_text(text.replace('"format":1', '"format":2'), encoding="utf-8")
    shutil.copytree(state, folder / "upgraded")
    (folder / "upgraded" / "manifest.json").write_text(text.replace('"qemu":"', '"qemu":"not '), encoding="utf-8")
    return {
        "flipped": "memory .* is damaged",
        "short": "memory .* is damaged",
        "empty": "no saved state of libvirt",
        "foreign": "no saved state of libvirt",
        "garbled": "or it is damaged",
        "small-disk": "disk .* is damaged",
        "newer": "format 2, known is 1",
        "upgraded": "qemu differ",
        "nothing": "no saved state in",
    }


@pytest.mark.long
async def test_ends_while_saving(bench: Bench, tmp_path: Path) -> None:
    """Cancelled at any time, or killed meanwhile: no folder, and a sandbox that runs or one that has ended."""
    with bench.nothing_remains():
        async with bench.driver() as driver:
            assert isinstance(driver, Snapshots)
            await driver.create(bench.spec())
            await driver.start("box")
            for milliseconds in (1, 30, 100, 300, 600):
                name = f"at-{milliseconds}"
                with trio.move_on_after(milliseconds / 1000) as scope:
                    await driver.save("box", tmp_path / name)
                assert scope.cancelled_caught or name in names_in(tmp_path)
                assert name not in names_in(tmp_path) or len(names_in(tmp_path / name)) == 3, "it is whole"
                assert not [left for left in names_in(tmp_path) if left.endswith("saving")]
                assert (await driver.state("box")).phase is Phase.RUNNING
            await driver.save("box", tmp_path / "last")
            async with agent_of(driver, "box", resync=True) as agent:
                status, _ = await run(agent, ("/bin/id",))
                assert status.as_shell() == 0
            pid = (await driver.state("box")).pid
            async with trio.open_nursery() as nursery:
                nursery.start_soon(kill_while_saving, tmp_path, pid)
                with pytest.raises(SandboxError):
                    await driver.save("box", tmp_path / "killed")
            assert not (tmp_path / "killed").exists()
            assert (await driver.events().receive()).exit == "signal 9"


async def kill_while_saving(folder: Path, pid: int | None) -> None:
    assert pid is not None
    while not [name for name in names_in(folder) if name.endswith("saving")]:  # noqa: ASYNC110 - a folder tells nobody
        await trio.sleep(0.01)
    os.kill(pid, 9)
