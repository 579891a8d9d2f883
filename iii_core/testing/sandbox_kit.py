"""Conformance kit for sandbox backends: what every `SandboxDriver` must do, as plain async functions.

The kit needs no test framework; each check raises ``AssertionError`` (or the backend's own error). It talks to the
sandboxes' agents over their links and looks at the machine from outside (``/proc``, mounts, control groups, files),
never only at what the backend says of itself. With pytest and anyio's plugin::

    from iii_core.testing import sandbox_kit

    @pytest.mark.parametrize("check", sandbox_kit.CHECKS, ids=lambda check: check.__name__)
    async def test_conformance(check, tmp_path):
        await check(sandbox_kit.SandboxesUnderTest(open=my_open, image=my_image, folder=tmp_path, capabilities=...))
"""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeAlias

import trio

from iii_core.errors import LinkError, SandboxError, SandboxNotFound
from iii_core.sandbox.port import Phase, SandboxDriver
from iii_core.testing import sandbox_kit_faults, sandbox_kit_options, sandbox_kit_snapshots
from iii_core.testing.sandbox_harness import (
    MARK,
    PATIENCE,
    SandboxesUnderTest,
    agent_of,
    expect_error,
    nothing_left,
    run,
    run_well,
    started,
)

Check: TypeAlias = Callable[[SandboxesUnderTest], Awaitable[None]]

BAD_IDS = ("", "A", "-a", "a/b", "../x", "a" * 64, "a\n", "ä", "a b", ".", "a\0")


async def check_lifecycle(under_test: SandboxesUnderTest) -> None:
    """create → start → link → stop → start → destroy, with the phases the port names; nothing is left."""
    async with nothing_left(under_test), under_test.open() as driver:
        spec = under_test.spec()
        await driver.create(spec)
        assert (await driver.state(spec.id)).phase is Phase.CREATED
        for _ in range(2):
            await driver.start(spec.id)
            state = await driver.state(spec.id)
            assert state.phase is Phase.RUNNING
            assert state.exit is None
            async with agent_of(driver, spec.id) as agent:
                assert await run_well(agent, under_test.commands.user_id)
                await driver.stop(spec.id, grace=0)
            state = await driver.state(spec.id)
            assert state.phase is Phase.STOPPED
            assert state.exit
            assert state.pid is None
        await driver.destroy(spec.id, keep_writable=False)
        spec.console.unlink()


async def check_unknown_ids(under_test: SandboxesUnderTest) -> None:
    """Every method but ``destroy`` raises `SandboxNotFound` for an id nobody created, or that was destroyed."""
    async with under_test.open() as driver:
        await driver.create(under_test.spec("gone"))
        await driver.destroy("gone", keep_writable=False)
        for sandbox_id in ("never", "gone"):
            for act in (driver.start, driver.link, driver.state, partial(driver.stop, grace=0)):
                await expect_error(SandboxNotFound, partial(act, sandbox_id))
            await driver.destroy(sandbox_id, keep_writable=False)


async def check_bad_ids(under_test: SandboxesUnderTest) -> None:
    """An id outside ``[a-z0-9][a-z0-9-]{0,62}`` is refused before anything touches the disk."""
    async with nothing_left(under_test), under_test.open() as driver:
        for sandbox_id in BAD_IDS:
            spec = under_test.spec("good")
            object.__setattr__(spec, "id", sandbox_id)
            await expect_error(SandboxError, partial(driver.create, spec))


async def check_taken_id(under_test: SandboxesUnderTest) -> None:
    """A second ``create`` of a live id fails and disturbs nothing; after ``destroy`` the id is free."""
    async with under_test.open() as driver:
        spec = under_test.spec()
        await driver.create(spec)
        await driver.start(spec.id)
        await expect_error(SandboxError, partial(driver.create, spec))
        assert (await driver.state(spec.id)).phase is Phase.RUNNING
        await driver.destroy(spec.id, keep_writable=False)
        await driver.create(spec)


async def check_start_twice(under_test: SandboxesUnderTest) -> None:
    """Starting what runs is an error, and it runs on."""
    async with started(under_test) as (driver, sandbox_id):
        await expect_error(SandboxError, partial(driver.start, sandbox_id))
        async with agent_of(driver, sandbox_id) as agent:
            await run_well(agent, under_test.commands.user_id)


async def check_stop_is_idempotent(under_test: SandboxesUnderTest) -> None:
    """Stopping what does not run does nothing: before the first start, and three times after."""
    async with under_test.open() as driver:
        await driver.create(under_test.spec())
        await driver.stop("one", grace=5)
        assert (await driver.state("one")).phase is Phase.CREATED
        await driver.start("one")
        for _ in range(3):
            with trio.fail_after(PATIENCE):
                await driver.stop("one", grace=0)
            assert (await driver.state("one")).phase is Phase.STOPPED


async def check_destroy_is_idempotent(under_test: SandboxesUnderTest) -> None:
    """Three times, one after the other and all at once, running or not."""
    async with nothing_left(under_test), under_test.open() as driver:
        for _ in range(2):
            spec = under_test.spec()
            await driver.create(spec)
            await driver.start(spec.id)
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(partial(driver.destroy, spec.id, keep_writable=False))
            for _ in range(3):
                await driver.destroy(spec.id, keep_writable=False)
            spec.console.unlink()


async def check_writes_are_private(under_test: SandboxesUnderTest) -> None:
    """Two sandboxes of one image do not see each other's writes."""
    async with under_test.open() as driver:
        for sandbox_id in ("one", "two"):
            await driver.create(under_test.spec(sandbox_id))
            await driver.start(sandbox_id)
        async with agent_of(driver, "one") as one, agent_of(driver, "two") as two:
            await run_well(one, under_test.commands.write(MARK, "of one"))
            status, _ = await run(two, under_test.commands.read(MARK))
            assert status.as_shell() != 0
            await run_well(two, under_test.commands.write(MARK, "of two"))
            assert await run_well(one, under_test.commands.read(MARK)) == "of one"


async def check_writes_survive_restart(under_test: SandboxesUnderTest) -> None:
    """The writable layer outlives ``stop``, a kill, and even the backend; ``destroy(keep_writable=True)`` keeps it."""
    commands = under_test.commands
    async with started(under_test) as (driver, sandbox_id), agent_of(driver, sandbox_id) as agent:
        await run_well(agent, commands.write(MARK, "kept"))
        with trio.fail_after(PATIENCE):
            await agent.power_off(grace=1)  # a machine that is killed may lose what it wrote last, as any machine may
    async with under_test.open() as driver:
        await driver.create(under_test.spec())
        for _ in range(2):
            await driver.start("one")
            async with agent_of(driver, "one") as agent:
                assert await run_well(agent, commands.read(MARK)) == "kept"
                await driver.stop("one", grace=0)
        await driver.destroy("one", keep_writable=True)
        await driver.create(under_test.spec())
        await driver.start("one")
        async with agent_of(driver, "one") as agent:
            assert await run_well(agent, commands.read(MARK)) == "kept"


async def check_destroy_drops_the_layer(under_test: SandboxesUnderTest) -> None:
    """``destroy(keep_writable=False)`` deletes it from the disk, and a new sandbox starts from the image alone."""
    async with started(under_test) as (driver, sandbox_id):
        async with agent_of(driver, sandbox_id) as agent:
            await run_well(agent, under_test.commands.write(MARK, "dropped"))
        spec = under_test.spec()
        await driver.destroy(sandbox_id, keep_writable=False)
        assert {path.name for path in under_test.folder.iterdir()} <= {spec.console.name}
        await driver.create(spec)
        await driver.start(sandbox_id)
        async with agent_of(driver, sandbox_id) as agent:
            status, _ = await run(agent, under_test.commands.read(MARK))
            assert status.as_shell() != 0


async def check_link_has_one_taker(under_test: SandboxesUnderTest) -> None:
    """One socket per boot: not before the start, not twice, not after the end; a new boot has a new one."""
    async with under_test.open() as driver:
        await driver.create(under_test.spec())
        await expect_error(SandboxError, partial(driver.link, "one"))
        for _ in range(2):
            await driver.start("one")
            with await driver.link("one"):
                await expect_error(SandboxError, partial(driver.link, "one"))
                await driver.stop("one", grace=0)
            await expect_error(SandboxError, partial(driver.link, "one"))


async def check_link_ends_with_the_sandbox(under_test: SandboxesUnderTest) -> None:
    """Who holds the link sees its end when the sandbox is killed."""
    async with started(under_test) as (driver, sandbox_id), agent_of(driver, sandbox_id) as agent:
        await driver.stop(sandbox_id, grace=0)
        with trio.fail_after(PATIENCE):
            await agent.wait_closed()
        await expect_error(LinkError, partial(run, agent, under_test.commands.user_id))


async def check_many_at_once(under_test: SandboxesUnderTest) -> None:
    """Eight sandboxes, everything concurrent, none disturbs another; nothing is left."""

    async def live(driver: SandboxDriver, sandbox_id: str) -> None:
        spec = under_test.spec(sandbox_id)
        await driver.create(spec)
        await driver.start(sandbox_id)
        async with agent_of(driver, sandbox_id) as agent:
            await run_well(agent, under_test.commands.write(MARK, sandbox_id))
            assert await run_well(agent, under_test.commands.read(MARK)) == sandbox_id
            await driver.stop(sandbox_id, grace=0)
        await driver.destroy(sandbox_id, keep_writable=False)
        spec.console.unlink()

    async with nothing_left(under_test), under_test.open() as driver, trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(live, driver, f"s{number}")


async def check_console(under_test: SandboxesUnderTest) -> None:
    """The console is a file of its owner alone, made by the first boot and appended to by the next."""
    async with started(under_test) as (driver, sandbox_id):
        console = under_test.spec().console
        found = console.stat()
        assert stat.S_ISREG(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o600
        await driver.stop(sandbox_id, grace=0)
        first = console.read_bytes()
        await driver.start(sandbox_id)
        assert console.read_bytes().startswith(first)


CHECKS: tuple[Check, ...] = (
    check_lifecycle,
    check_unknown_ids,
    check_bad_ids,
    check_taken_id,
    check_start_twice,
    check_stop_is_idempotent,
    check_destroy_is_idempotent,
    check_writes_are_private,
    check_writes_survive_restart,
    check_destroy_drops_the_layer,
    check_link_has_one_taker,
    check_link_ends_with_the_sandbox,
    check_many_at_once,
    check_console,
    *sandbox_kit_faults.CHECKS,
    *sandbox_kit_options.CHECKS,
    *sandbox_kit_snapshots.CHECKS,
)
