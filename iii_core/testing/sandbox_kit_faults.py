"""The second part of the sandbox conformance kit: ends nobody asked for, time limits, cancellation, resource limits."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TypeAlias

import trio
import trio.testing

from iii_core.errors import LinkError, ProcessSpawnError, SandboxError, SandboxNotFound, UnsupportedOperation
from iii_core.sandbox.port import Capability, Limits, Phase, SandboxDriver
from iii_core.testing.sandbox_harness import (
    MARK,
    PATIENCE,
    SandboxesUnderTest,
    agent_of,
    cancelled_at,
    expect_error,
    nothing_left,
    run,
    run_well,
    started,
)

Check: TypeAlias = Callable[[SandboxesUnderTest], Awaitable[None]]

LIMITS = Limits(cpus=1, memory_mib=128, pids=32)
LIMIT_WORDS: Mapping[Capability, str] = {
    Capability.CPU_LIMIT: "cpu",
    Capability.MEMORY_LIMIT: "memory",
    Capability.PID_LIMIT: "process",
}
"""Each limit, and the word by which ``unenforced`` names it."""


async def check_unasked_end_is_reported(under_test: SandboxesUnderTest) -> None:
    """A sandbox that ends by itself gives one event that tells how, with its console's tail; it can be restarted."""
    async with started(under_test) as (driver, sandbox_id):
        await _end_inside(driver, sandbox_id)
        with trio.fail_after(PATIENCE):
            event = await driver.events().receive()
        assert event.id == sandbox_id
        assert event.exit
        assert len(event.console_tail) <= 4096
        state = await driver.state(sandbox_id)
        assert state.phase is Phase.STOPPED
        assert state.exit == event.exit
        await driver.start(sandbox_id)
        assert (await driver.state(sandbox_id)).phase is Phase.RUNNING


async def _end_inside(driver: SandboxDriver, sandbox_id: str) -> None:
    """Let the agent end its sandbox, without a word to the driver."""
    async with agent_of(driver, sandbox_id) as agent:
        with trio.fail_after(PATIENCE):
            await agent.power_off(0)


async def check_kill_from_outside_is_reported(under_test: SandboxesUnderTest) -> None:
    """Where a sandbox is a process, SIGKILL to it gives an event, and nothing of the sandbox is left running."""
    async with under_test.open() as driver:
        spec = under_test.spec()
        await driver.create(spec)
        await driver.start(spec.id)
        async with agent_of(driver, spec.id) as agent:
            await run_well(agent, under_test.commands.user_id)  # the backend has all its helpers by now
            await driver.stop(spec.id, grace=0)
        async with nothing_left(under_test):
            await driver.start(spec.id)
            pid = (await driver.state(spec.id)).pid
            if pid is None:  # no process of its own
                await driver.stop(spec.id, grace=0)
                return
            os.kill(pid, signal.SIGKILL)
            with trio.fail_after(PATIENCE):
                assert (await driver.events().receive()).id == spec.id


async def check_asked_end_is_not_reported(under_test: SandboxesUnderTest) -> None:
    """``stop`` and ``destroy`` give no event."""
    async with started(under_test) as (driver, sandbox_id):
        await driver.stop(sandbox_id, grace=0)
        await driver.start(sandbox_id)
        await driver.destroy(sandbox_id, keep_writable=False)
        await driver.create(under_test.spec("other"))
        await driver.start("other")
        await _end_inside(driver, "other")
        with trio.fail_after(PATIENCE):
            assert (await driver.events().receive()).id == "other"  # the first event there is


async def check_stop_waits_for_grace(under_test: SandboxesUnderTest) -> None:
    """``stop`` returns as soon as an agent that was asked has powered off, long before ``grace`` is over."""
    async with started(under_test) as (driver, sandbox_id), agent_of(driver, sandbox_id) as agent:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(driver.stop, sandbox_id, grace=10 * PATIENCE))
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(agent.power_off, 0.1)
        assert (await driver.state(sandbox_id)).exit == "exit 0"


async def check_stop_kills_after_grace(under_test: SandboxesUnderTest) -> None:
    """A sandbox whose agent was not asked is killed when ``grace`` is over, not before."""
    async with started(under_test) as (driver, sandbox_id), agent_of(driver, sandbox_id):
        begin = trio.current_time()
        with trio.fail_after(PATIENCE):
            await driver.stop(sandbox_id, grace=0.2)
        assert trio.current_time() - begin >= 0.2
        assert (await driver.state(sandbox_id)).phase is Phase.STOPPED


async def check_destroy_while_booting(under_test: SandboxesUnderTest) -> None:
    """``destroy`` wins over a ``start`` under way, which then succeeded or raised `SandboxError`; nothing is left."""

    async def start(driver: SandboxDriver) -> None:
        with suppress(SandboxError):
            await driver.start("one")

    async with nothing_left(under_test), under_test.open() as driver:
        for delay in (0, 0.002, 0.005, 0.01):
            spec = under_test.spec()
            await driver.create(spec)
            with trio.fail_after(PATIENCE):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(start, driver)
                    await trio.sleep(delay)
                    await driver.destroy("one", keep_writable=False)
            await expect_error(SandboxNotFound, partial(driver.state, "one"))
            spec.console.unlink(missing_ok=True)


async def check_cancelled_create(under_test: SandboxesUnderTest) -> None:
    """Cancelled anywhere, ``create`` either was done or leaves no sandbox and no file."""
    step, cancelled = 1, True
    async with under_test.open() as driver:
        await driver.create(under_test.spec())
        await driver.destroy("one", keep_writable=False)  # the backend has all its helpers by now
        while cancelled:
            async with nothing_left(under_test):
                cancelled = await cancelled_at(step, partial(driver.create, under_test.spec()))
                if not cancelled:
                    assert (await driver.state("one")).phase is Phase.CREATED
                await driver.destroy("one", keep_writable=False)
            step += 1


async def check_cancelled_start(under_test: SandboxesUnderTest) -> None:
    """Cancelled anywhere, ``start`` leaves a sandbox that runs or one that does not, and can be started."""
    step, cancelled = 1, True
    async with nothing_left(under_test), under_test.open() as driver:
        spec = under_test.spec()
        await driver.create(spec)
        while cancelled:
            cancelled = await cancelled_at(step, partial(driver.start, "one"))
            if (await driver.state("one")).phase is not Phase.RUNNING:
                await driver.start("one")
            async with agent_of(driver, "one") as agent:
                await run_well(agent, under_test.commands.user_id)
                await driver.stop("one", grace=0)
            step += 1 if step < 12 else step // 2  # every point at first, then a sample: what is slow waits on and on
        await driver.destroy("one", keep_writable=False)
        spec.console.unlink()


async def check_cancelled_stop(under_test: SandboxesUnderTest) -> None:
    """A ``stop`` cancelled while it waits for ``grace`` leaves the sandbox running and still reports its own end."""
    async with started(under_test) as (driver, sandbox_id):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(driver.stop, sandbox_id, grace=10 * PATIENCE))
            await trio.testing.wait_all_tasks_blocked()  # it waits, however busy the machine is
            await trio.sleep(0.1)
            assert nursery.child_tasks, "it did not wait for grace"
            nursery.cancel_scope.cancel()
        assert (await driver.state(sandbox_id)).phase is Phase.RUNNING
        await _end_inside(driver, sandbox_id)
        with trio.fail_after(PATIENCE):
            assert (await driver.events().receive()).id == sandbox_id


async def check_closing_ends_all(under_test: SandboxesUnderTest) -> None:
    """When the backend's block ends, its sandboxes end and only writable layers and consoles stay."""
    async with started(under_test) as (driver, sandbox_id), agent_of(driver, sandbox_id) as agent:
        await run_well(agent, under_test.commands.write(MARK, "kept"))
    async with nothing_left(under_test):
        async with under_test.open() as driver:
            for sandbox_id in ("one", "two"):
                await driver.create(under_test.spec(sandbox_id))
                await driver.start(sandbox_id)
        await _remove(under_test, "two")


async def check_limits_are_kept(under_test: SandboxesUnderTest) -> None:
    """A limit is enforced, or named by ``unenforced``; a backend without the capability may also refuse it."""
    async with under_test.open() as driver:
        try:
            await driver.create(under_test.spec(limits=LIMITS))
        except UnsupportedOperation:
            assert not under_test.capabilities & LIMIT_WORDS.keys()
            return
        unenforced = " ".join((await driver.state("one")).unenforced).casefold()
        for capability, word in LIMIT_WORDS.items():
            kept = word not in unenforced
            assert not kept or capability in under_test.capabilities, f"{capability} is neither declared nor unenforced"
            if kept and word != "cpu":  # how fast something runs proves nothing on a busy machine
                await _check_limit(under_test, driver, word)


async def _check_limit(under_test: SandboxesUnderTest, driver: SandboxDriver, word: str) -> None:
    commands = under_test.commands
    little, much = (
        (commands.allocate(8), commands.allocate(512)) if word == "memory" else (commands.fork(4), commands.fork(64))
    )
    await driver.start("one")
    try:
        async with agent_of(driver, "one") as agent:
            await run_well(agent, little)
            status, _ = await run(agent, much)
            assert status.as_shell() != 0, f"the {word} limit is not kept"
    except LinkError:
        pass  # the whole sandbox went down over it: kept as well
    await driver.stop("one", grace=0)


async def check_users(under_test: SandboxesUnderTest) -> None:
    """With `Capability.USER_RANGE` programs run as other users, or ``notes`` say why not; without, they don't."""
    async with started(under_test) as (driver, sandbox_id), agent_of(driver, sandbox_id) as agent:
        assert (await run_well(agent, under_test.commands.user_id)).strip() == "0"
        try:
            printed = await run_well(agent, under_test.commands.user_id, uid=1000)
        except ProcessSpawnError:
            notes = (await driver.state(sandbox_id)).notes
            assert Capability.USER_RANGE not in under_test.capabilities or notes, "declared, missing, and nothing said"
        else:
            assert printed.strip() == "1000"
            assert Capability.USER_RANGE in under_test.capabilities, "there are other users, though it is not declared"


async def _remove(under_test: SandboxesUnderTest, sandbox_id: str) -> None:
    async with under_test.open() as driver:
        await driver.create(under_test.spec(sandbox_id))
        await driver.destroy(sandbox_id, keep_writable=False)
    under_test.spec(sandbox_id).console.unlink()


CHECKS: tuple[Check, ...] = (
    check_unasked_end_is_reported,
    check_kill_from_outside_is_reported,
    check_asked_end_is_not_reported,
    check_stop_waits_for_grace,
    check_stop_kills_after_grace,
    check_destroy_while_booting,
    check_cancelled_create,
    check_cancelled_start,
    check_cancelled_stop,
    check_closing_ends_all,
    check_limits_are_kept,
    check_users,
)
