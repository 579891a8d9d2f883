"""``create``, ``start``, ``stop`` and ``destroy``, cancelled at every point where they wait: nothing is left, ever."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
from iii_sandbox_bubblewrap import boots

from iii_core.errors import SandboxNotFound
from iii_core.sandbox.port import Limits, Phase, SandboxDriver
from iii_core.testing.sandbox_harness import SandboxesUnderTest, agent_of, cancelled_at, nothing_left, run_well

from .bwrapkit import Bench

pytestmark = pytest.mark.integration
LIMITS = Limits(cpus=1, memory_mib=256, pids=64)
STEPS = 25
"""More than any of these takes: `test_steps_are_enough`. A boot polls for its agent: a slow one takes more."""


async def arrange(driver: SandboxDriver, bench: Bench, method: str) -> Callable[[], Awaitable[None]]:
    """Bring a sandbox to where ``method`` is about to be called; the call."""
    spec = bench.spec("one", limits=LIMITS)
    if method == "create":
        spec.writable_dir.with_name("one.layer.removed").mkdir()  # a deletion was cut off
        return partial(driver.create, spec)
    await driver.create(spec)
    if method == "start":
        return partial(driver.start, "one")
    await driver.start("one")
    if method == "stop":
        return partial(driver.stop, "one", grace=0.005)
    return partial(driver.destroy, "one", keep_writable=method == "destroy-keeping")


METHODS = ["create", "start", "stop", "destroy", "destroy-keeping"]


@pytest.mark.long
@pytest.mark.parametrize("warm", [True, False], ids=["keeper-runs", "keeper-starts"])
@pytest.mark.parametrize("step", range(1, STEPS + 1))
@pytest.mark.parametrize("method", METHODS)
async def test_cancelled(bench: Bench, method: str, step: int, warm: bool) -> None:
    under_test = SandboxesUnderTest(open=bench.driver, image=bench.image, folder=bench.folder, capabilities=frozenset())
    async with nothing_left(under_test), bench.driver() as driver:
        if warm:
            await driver.create(bench.spec("other"))
            await driver.start("other")
            await driver.destroy("other", keep_writable=False)
        call = await arrange(driver, bench, method)
        await cancelled_at(step, call)
        try:
            phase = (await driver.state("one")).phase
        except SandboxNotFound:
            assert method in ("create", "destroy", "destroy-keeping")
        else:
            if phase is not Phase.RUNNING:
                await driver.start("one")
            async with agent_of(driver, "one") as agent:
                await run_well(agent, ("/bin/id",))
                await driver.stop("one", grace=0)
        with trio.fail_after(20):
            await driver.destroy("one", keep_writable=False)
            await driver.create(bench.spec("one"))  # the id is free, and so is the place of its layer
            await driver.start("one")
            await driver.destroy("one", keep_writable=False)
        for path in bench.folder.glob("*.console"):
            path.unlink()


@pytest.mark.parametrize("method", METHODS)
async def test_steps_are_enough(bench: Bench, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boots, "_EXEC_POLL", 1.0)  # so that few of them are
    async with bench.driver() as driver:
        call = await arrange(driver, bench, method)
        assert not await cancelled_at(STEPS, call)
