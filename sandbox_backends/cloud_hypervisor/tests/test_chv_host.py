"""The backend as the engine uses it: opened by a sandbox host process, from a configuration."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio

from iii_core.errors import BackendUnavailable
from iii_core.sandbox.host_processes import ProcessId
from iii_core.sandbox.hostclient import open_sandbox_host
from iii_core.testing.sandbox_harness import agent_of, descendants, run_well

from .vmmkit import Bench

pytestmark = pytest.mark.integration


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def test_a_life_in_a_sandbox_host(bench: Bench) -> None:
    config = {"cloud-hypervisor": {"program": str(bench.program({})), "landlock": False}}
    async with open_sandbox_host(bench.context, config=config) as host:
        driver = await host.driver("cloud-hypervisor")
        await driver.create(bench.spec())
        await driver.start("one")
        async with agent_of(driver, "one") as agent:
            assert (await run_well(agent, ["/bin/id", "-u"])).strip() == "0"
        await driver.destroy("one", keep_writable=False)
    assert not bench.spec().writable_dir.exists()


async def test_a_machine_does_not_outlive_a_killed_host(bench: Bench) -> None:
    config = {"cloud-hypervisor": {"program": str(bench.program({}))}}
    before = set(descendants(os.getpid()))
    async with open_sandbox_host(bench.context, config=config) as host:
        driver = await host.driver("cloud-hypervisor")
        await driver.create(bench.spec())
        await driver.start("one")
        vmm = ProcessId.of((await driver.state("one")).pid or 0)
        assert vmm is not None
        os.kill(parent_of(vmm.pid), signal.SIGKILL)
        with trio.fail_after(30):
            await host.wait_died()
    assert not vmm.alive()
    assert set(descendants(os.getpid())) <= before
    async with open_sandbox_host(bench.context, config=config) as host:  # what the boot left is in nobody's way
        driver = await host.driver("cloud-hypervisor")
        assert bench.places() == []
        await driver.create(bench.spec())
        await driver.start("one")


async def test_nothing_is_installed(bench: Bench) -> None:
    async with open_sandbox_host(bench.context, config={"cloud-hypervisor": {"program": "/nowhere"}}) as host:
        assert not (await host.probe("cloud-hypervisor")).automatic
        with pytest.raises(BackendUnavailable, match="/nowhere is not installed"):
            await host.driver("cloud-hypervisor")
