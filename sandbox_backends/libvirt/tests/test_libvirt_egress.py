"""Guests with network access: what happens when a part of their way out fails, and to saved states."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from iii_sandbox_gate.needs import TUN, find_lack

from iii_core.errors import BootFailed, SandboxHostDied, SnapshotUnusable
from iii_core.sandbox.agent import Agent
from iii_core.sandbox.port import Egress, Phase, SandboxSpec, Snapshots
from iii_core.testing.sandbox_harness import descendants, run

from .vmkit import Bench, agent_of, status_of

pytestmark = [
    pytest.mark.integration,
    pytest.mark.long,
    pytest.mark.timeout(300),
    pytest.mark.skipif(find_lack(os.environ) is not None, reason=f"this user may not open {TUN}, or lacks programs"),
]


def spec(bench: Bench, sandbox_id: str = "box") -> SandboxSpec:
    return replace(bench.spec(sandbox_id), egress=Egress())


def uplinks() -> list[int]:
    lines = (line.split(maxsplit=1) for line in descendants(os.getpid()))
    return [int(pid) for pid, name in lines if name == "slirp4netns"]


async def gone(pids: list[int]) -> None:
    with trio.fail_after(40):
        while any(Path(f"/proc/{pid}").exists() for pid in pids):  # noqa: ASYNC110, ASYNC240
            await trio.sleep(0.02)


async def is_answered(agent: Agent) -> bool:
    """Whether there is a gate: it says at once that it refuses."""
    _, printed = await run(agent, ("/bin/sh", "-c", "nc -w 10 10.0.0.1 80 </dev/null"))
    return "No route to host" in printed


async def is_told(bench: Bench, words: str) -> None:
    """Wait for words on the console."""
    console = bench.folder / "box.console"
    with trio.fail_after(40):
        while words not in console.read_text(encoding="utf-8"):  # noqa: ASYNC110
            await trio.sleep(0.02)


async def test_the_uplink_dies(bench: Bench) -> None:
    with bench.nothing_remains():
        async with bench.sandbox(spec(bench)) as (driver, agent):
            assert await is_answered(agent)
            (uplink,) = uplinks()
            gate, qemu = (
                status_of(pid) for pid in (int(status_of(uplink)["PPid"]), (await driver.state("box")).pid or 0)
            )
            assert gate["CapEff"] == "0000000000000000"
            if os.geteuid() == 0:
                assert gate["Uid"] == qemu["Uid"], "who takes over a QEMU gets at no other machine's network"
            os.kill(uplink, signal.SIGKILL)
            await is_told(bench, "no network any more: slirp4netns has ended")
            assert (await driver.state("box")).phase is Phase.RUNNING
            await driver.destroy("box", keep_writable=False)
            assert not uplinks()


async def test_the_gate_dies(bench: Bench) -> None:
    """It carries the frames: the sandbox runs on without, and its console says so."""
    with bench.nothing_remains():
        async with bench.sandbox(spec(bench)) as (driver, agent):
            assert await is_answered(agent)
            (uplink,) = uplinks()
            os.kill(int(status_of(uplink)["PPid"]), signal.SIGKILL)
            await is_told(bench, "no network any more: the process that is its gate has ended")
            await gone([uplink])
            assert (await driver.state("box")).phase is Phase.RUNNING
            assert not await is_answered(agent)
            await driver.destroy("box", keep_writable=False)


async def test_the_sandbox_host_is_killed(bench: Bench) -> None:
    async with bench.driver() as driver:
        await driver.create(spec(bench))
        await driver.start("box")
        (uplink,) = uplinks()
        host, *_ = [int(line.split()[0]) for line in descendants(os.getpid()) if line.split()[1].startswith("python")]
        below = [int(line.split()[0]) for line in descendants(host)]
        assert uplink in below
        os.kill(host, signal.SIGKILL)
        await gone(below)
        with pytest.raises(SandboxHostDied):
            await driver.state("box")


async def test_the_uplink_does_not_come_up(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    slirp = tmp_path / "bin" / "slirp4netns"
    slirp.write_text("#!/bin/sh\necho no tap today >&2\nexit 1\n", encoding="ascii")
    slirp.chmod(0o755)
    with bench.nothing_remains():
        async with bench.driver(environ={"PATH": f"{slirp.parent}:{os.environ['PATH']}"}) as driver:
            await driver.create(spec(bench))
            with pytest.raises(BootFailed, match="uplink of its network did not come up") as caught:
                await driver.start("box")
            assert "no tap today" in caught.value.details["console"]
            assert caught.value.hint
            await driver.destroy("box", keep_writable=False)


async def test_saved_and_restored(bench: Bench, tmp_path: Path) -> None:
    """It comes back behind a gate of its own; and a state is restored only into what has the same devices."""
    async with bench.driver() as driver:
        assert isinstance(driver, Snapshots)
        await driver.create(spec(bench))
        await driver.start("box")
        async with agent_of(driver, "box") as agent:
            assert await is_answered(agent)
            await driver.save("box", tmp_path / "saved")
        async with agent_of(driver, "box", resync=True) as agent:
            assert await is_answered(agent), "it runs on"
            before = uplinks()
            await driver.stop("box", grace=0)
        await driver.restore("box", tmp_path / "saved")
        assert len(uplinks()) == 1
        assert uplinks() != before
        async with agent_of(driver, "box", resync=True) as agent:
            assert await is_answered(agent)
            await driver.stop("box", grace=0)
        await driver.create(bench.spec("other"))
        with pytest.raises(SnapshotUnusable, match="cmdline"):
            await driver.restore("other", tmp_path / "saved")
