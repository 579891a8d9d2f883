"""How machines end: the ladder from the power button to SIGKILL, guests that reboot, VMMs that hang."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from iii_core.sandbox.port import Phase
from iii_core.testing.sandbox_harness import agent_of, cancelled_at, descendants, run_well

from .vmmkit import QUICK, Bench, descriptors

pytestmark = [pytest.mark.integration, pytest.mark.long]
LADDER = ["PUT vm.power-button", "PUT vm.shutdown", "PUT vmm.shutdown"]
WHOLE_LADDER = QUICK.button + 4 * QUICK.shutdown


@pytest.mark.parametrize(
    ("faults", "rungs", "how"),
    [
        ({}, 3, "exit 0"),
        ({"heeds-button": True}, 1, "exit 0"),
        ({"at": {"vm.power-button": [405, "no"]}}, 3, "exit 0"),
        ({"at": {"vm.power-button": "hang"}}, 3, "exit 0"),
        ({"at": {"vm.shutdown": [500, '["no"]']}}, 3, "exit 0"),
        ({"at": {"vm.shutdown": "garbage"}}, 3, "exit 0"),
        ({"at": {"vm.power-button": "close", "vm.shutdown": "truncate"}}, 3, "exit 0"),
        ({"at": {"vmm.shutdown": "ignore"}}, 3, "signal 9"),
        ({"at": {"vmm.shutdown": [500, ""]}}, 3, "signal 9"),
        ({"at": {"vmm.shutdown": "hang", "vm.shutdown": "hang"}}, 3, "signal 9"),
        ({"at": {"vm.power-button": "die"}}, 1, "signal 9"),
        ({"at": {"vm.shutdown": "die"}}, 2, "signal 9"),
    ],
)
async def test_the_ladder(bench: Bench, faults: dict[str, Any], rungs: int, how: str) -> None:
    patience = replace(QUICK, button=20) if "heeds-button" in faults else QUICK
    async with bench.open(faults, patience=patience) as driver:
        await driver.create(bench.spec())
        await driver.start("one")
        bench.calls()
        with trio.fail_after(WHOLE_LADDER + 10):
            await driver.stop("one", grace=0)
        assert (await driver.state("one")).exit == how
        assert bench.places() == []
    assert bench.calls() == LADDER[:rungs]


async def test_a_vmm_that_hangs_is_killed(bench: Bench) -> None:
    async with bench.open() as driver:
        await driver.create(bench.spec())
        await driver.start("one")
        pid = (await driver.state("one")).pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        with trio.fail_after(WHOLE_LADDER + 10):
            await driver.destroy("one", keep_writable=False)


async def test_a_guest_that_was_asked_needs_no_ladder(bench: Bench) -> None:
    async with bench.open() as driver:
        await driver.create(bench.spec())
        await driver.start("one")
        async with agent_of(driver, "one") as agent, trio.open_nursery() as nursery:
            bench.calls()
            nursery.start_soon(partial(driver.stop, "one", grace=20))
            await trio.testing.wait_all_tasks_blocked()
            await agent.power_off(0.1)
    assert bench.calls() == []


async def test_a_guest_that_reboots_has_ended(bench: Bench) -> None:
    async with bench.open() as driver:
        await driver.create(bench.spec())
        await driver.start("one")
        pid = (await driver.state("one")).pid
        assert pid is not None
        os.kill(pid, signal.SIGUSR1)
        with trio.fail_after(30):
            event = await driver.events().receive()
        assert (event.id, event.exit) == ("one", "reboot")
        assert "the guest's kernel speaks" in event.console_tail
        assert (await driver.state("one")).phase is Phase.STOPPED
        await driver.start("one")


@asynccontextmanager
async def nothing_runs() -> AsyncGenerator[None]:
    """The block leaves no process and no descriptor, a moment later at most."""

    def found() -> tuple[list[str], int]:
        return sorted(descendants(os.getpid())), descriptors()

    before = found()
    yield
    with trio.move_on_after(20):
        while found() != before:  # noqa: ASYNC110  # the kernel's own tidying has no event
            await trio.sleep(0.01)
    assert found() == before


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_cancelled_at_every_point_of_a_start(bench: Bench) -> None:
    step, cancelled = 1, True
    async with bench.open() as driver:
        await driver.create(bench.spec())
        await driver.start("one")
        async with agent_of(driver, "one") as agent:
            await run_well(agent, ["/bin/id", "-u"])
            await driver.stop("one", grace=0)
        while cancelled:
            async with nothing_runs():
                cancelled = await cancelled_at(step, partial(driver.start, "one"))
                if cancelled:
                    assert (await driver.state("one")).phase is Phase.STOPPED
                else:
                    await driver.stop("one", grace=0)
                assert bench.places() == []
            step += 1
        assert step > 20
        await driver.start("one")
        async with agent_of(driver, "one") as agent:
            await run_well(agent, ["/bin/id", "-u"])
