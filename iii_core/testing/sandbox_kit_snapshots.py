"""The fourth part of the sandbox conformance kit: saving a running sandbox, and what is restored from that.

All of it holds for backends that declare `Capability.SNAPSHOT` alone.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeAlias

import trio

from iii_core.errors import SandboxError, SnapshotUnusable
from iii_core.sandbox.port import Capability, Limits, Phase, SandboxDriver, Snapshots
from iii_core.testing.sandbox_harness import (
    MARK,
    PATIENCE,
    SandboxesUnderTest,
    agent_of,
    cancelled_at,
    expect_error,
    nothing_left,
    process,
    run_well,
    started,
)

Check: TypeAlias = Callable[[SandboxesUnderTest], Awaitable[None]]

KEY = "kept"
SETTLED_CLOCK = 10.0
"""Seconds by which the clock of a restored sandbox may be wrong."""
STEPS = 12


def only_with_snapshots(check: Check) -> Check:
    """Nothing is asked of a backend that declares none."""

    async def checked(under_test: SandboxesUnderTest) -> None:
        if Capability.SNAPSHOT in under_test.capabilities:
            await check(under_test)

    checked.__name__, checked.__doc__ = check.__name__, check.__doc__
    return checked


def saver(driver: SandboxDriver) -> Snapshots:
    """The driver as what it must be."""
    assert isinstance(driver, Snapshots), "it declares snapshots, and has neither save nor restore"
    return driver


@only_with_snapshots
async def check_saved_it_runs_on(under_test: SandboxesUnderTest) -> None:
    """``save`` breaks the link and gives another; the sandbox is the same, and what was released in it runs on."""
    folder = under_test.folder / "state"
    async with started(under_test) as (driver, sandbox_id):
        before = (await driver.state(sandbox_id)).pid
        async with agent_of(driver, sandbox_id) as agent:
            sleeper = await agent.spawn(process(under_test.commands.sleep(600)))
            assert await sleeper.release(KEY)
            await saver(driver).save(sandbox_id, folder)
            with trio.fail_after(PATIENCE):
                await agent.wait_closed()
        state = await driver.state(sandbox_id)
        assert (state.phase, state.pid) == (Phase.RUNNING, before)
        async with agent_of(driver, sandbox_id, resync=True) as agent:
            again = await agent.adopt(KEY)
            assert again.pid == sleeper.pid
            await again.kill()
            with trio.fail_after(PATIENCE):
                await again.wait()
        assert folder.is_dir()
        assert not folder.stat().st_mode & 0o077, "others may look at its memory"


@only_with_snapshots
async def check_restored_as_it_was(under_test: SandboxesUnderTest) -> None:
    """A restored sandbox has the files and processes of the saved time, again and again, and writes of its own."""
    commands, folder = under_test.commands, under_test.folder / "state"
    async with started(under_test) as (driver, sandbox_id):
        async with agent_of(driver, sandbox_id) as agent:
            await run_well(agent, commands.write(MARK, "saved"))
            sleeper = await agent.spawn(process(commands.sleep(600)))
            assert await sleeper.release(KEY)
            await saver(driver).save(sandbox_id, folder)
        async with agent_of(driver, sandbox_id, resync=True) as agent:
            await run_well(agent, commands.write(MARK, "later"))
        await driver.stop(sandbox_id, grace=0)
        for _ in range(2):
            await saver(driver).restore(sandbox_id, folder)
            assert (await driver.state(sandbox_id)).phase is Phase.RUNNING
            async with agent_of(driver, sandbox_id, resync=True) as agent:
                assert await run_well(agent, commands.read(MARK)) == "saved"
                assert (await agent.adopt(KEY)).pid == sleeper.pid
                await run_well(agent, commands.write(MARK, "of the copy"))
            await driver.stop(sandbox_id, grace=0)


@only_with_snapshots
async def check_copies_differ(under_test: SandboxesUnderTest) -> None:
    """Two sandboxes restored from one state run side by side, with the right time and random numbers of their own."""
    commands, folder = under_test.commands, under_test.folder / "state"
    drawn: set[str] = set()
    async with started(under_test) as (driver, sandbox_id):
        await saver(driver).save(sandbox_id, folder)
        await driver.destroy(sandbox_id, keep_writable=False)
        await trio.sleep(1.5)  # so that a clock that stood still is wrong
        for name in ("one", "two"):
            await driver.create(under_test.spec(name))
            await saver(driver).restore(name, folder)
        for name in ("one", "two"):
            async with agent_of(driver, name, resync=True) as agent:
                drawn.add(await run_well(agent, commands.random))
                begun = time.time()
                clock = float(await run_well(agent, commands.clock))
                assert begun - SETTLED_CLOCK < clock < time.time() + SETTLED_CLOCK, f"its clock says {clock}"
                await run_well(agent, commands.write(MARK, name))
                assert await run_well(agent, commands.read(MARK)) == name
    assert len(drawn) == 2, f"both drew {drawn}"


@only_with_snapshots
async def check_what_cannot_be_saved_or_restored(under_test: SandboxesUnderTest) -> None:
    """Nothing that does not run is saved, nothing over another folder; what is no state is `SnapshotUnusable`."""
    folder = under_test.folder / "state"
    async with under_test.open() as driver:
        spec = under_test.spec()
        await driver.create(spec)
        await expect_error(SandboxError, partial(saver(driver).save, spec.id, folder))
        assert not folder.exists()
        await expect_error(SnapshotUnusable, partial(saver(driver).restore, spec.id, folder))
        await driver.start(spec.id)
        await saver(driver).save(spec.id, folder)
        await expect_error(SandboxError, partial(saver(driver).save, spec.id, folder))
        await expect_error(SandboxError, partial(saver(driver).restore, spec.id, folder))
        await driver.stop(spec.id, grace=0)
        damaged = under_test.folder / "damaged"
        copy_beginnings(folder, damaged)
        await expect_error(SnapshotUnusable, partial(saver(driver).restore, spec.id, damaged))
        await driver.start(spec.id)
        async with agent_of(driver, spec.id) as agent:
            await run_well(agent, under_test.commands.user_id)


@only_with_snapshots
async def check_cancelled_save(under_test: SandboxesUnderTest) -> None:
    """A cancelled ``save`` leaves no folder and a sandbox that runs, or has saved it whole."""
    async with started(under_test) as (driver, sandbox_id):
        for step in range(1, STEPS + 1):
            folder = under_test.folder / f"state-{step}"
            cancelled = await cancelled_at(step, partial(saver(driver).save, sandbox_id, folder))
            assert cancelled or folder.is_dir()
            assert_nothing_half(under_test.folder)
            assert (await driver.state(sandbox_id)).phase is Phase.RUNNING
            if not cancelled:
                break
        async with agent_of(driver, sandbox_id, resync=True) as agent:
            await run_well(agent, under_test.commands.user_id)


@only_with_snapshots
async def check_cancelled_restore(under_test: SandboxesUnderTest) -> None:
    """A cancelled ``restore`` leaves a sandbox that runs, or one that can be started with the layer that it had."""
    commands, folder = under_test.commands, under_test.folder / "state"
    async with started(under_test) as (driver, sandbox_id):
        await saver(driver).save(sandbox_id, folder)
        async with agent_of(driver, sandbox_id, resync=True) as agent:
            await run_well(agent, commands.write(MARK, "later"))
            with trio.fail_after(PATIENCE):
                await agent.power_off(grace=1)
        await driver.stop(sandbox_id, grace=PATIENCE)  # what is killed may lose what it wrote last
        for delay in (0, 0.05, 0.2):
            with trio.move_on_after(delay):
                await saver(driver).restore(sandbox_id, folder)
            if (await driver.state(sandbox_id)).phase is Phase.RUNNING:
                await driver.stop(sandbox_id, grace=0)
                return
            await driver.start(sandbox_id)
            async with agent_of(driver, sandbox_id) as agent:
                assert await run_well(agent, commands.read(MARK)) == "later"
                with trio.fail_after(PATIENCE):
                    await agent.power_off(grace=1)
            await driver.stop(sandbox_id, grace=PATIENCE)


@only_with_snapshots
async def check_snapshots_leave_nothing(under_test: SandboxesUnderTest) -> None:
    """After a sandbox was saved, restored and destroyed there is the state, and nothing else."""
    folder = under_test.folder / "state"
    spec = under_test.spec(limits=Limits())
    async with nothing_left(under_test):
        async with under_test.open() as driver:
            await driver.create(spec)
            await driver.start(spec.id)
            await saver(driver).save(spec.id, folder)
            await driver.stop(spec.id, grace=0)
            await saver(driver).restore(spec.id, folder)
            await driver.destroy(spec.id, keep_writable=False)
        spec.console.unlink()
        await trio.to_thread.run_sync(shutil.rmtree, folder)


def copy_beginnings(source: Path, target: Path) -> None:
    """Copy at most half of each file: they may be large."""
    target.mkdir()
    for path in source.iterdir():
        if path.is_file():
            with path.open("rb") as file:
                (target / path.name).write_bytes(file.read(min(path.stat().st_size // 2, 1 << 20)))


def assert_nothing_half(folder: Path) -> None:
    """What is there of states is whole: a backend works beside the folder it was given, under a hidden name."""
    half = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    assert not half, f"{half} was left"


CHECKS: tuple[Check, ...] = (
    check_saved_it_runs_on,
    check_restored_as_it_was,
    check_copies_differ,
    check_what_cannot_be_saved_or_restored,
    check_cancelled_save,
    check_cancelled_restore,
    check_snapshots_leave_nothing,
)
