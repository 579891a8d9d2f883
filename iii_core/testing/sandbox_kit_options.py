"""The third part of the sandbox conformance kit: what a backend may have or not have, and must be honest about."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import TypeAlias

from iii_core.errors import SandboxNotFound, UnsupportedOperation
from iii_core.sandbox.port import Capability, Egress, Limits, Mount, SandboxSpec, Snapshots
from iii_core.testing.sandbox_harness import (
    SandboxesUnderTest,
    agent_of,
    expect_error,
    nothing_left,
    run,
    run_well,
    started,
)

Check: TypeAlias = Callable[[SandboxesUnderTest], Awaitable[None]]

DISK_MIB = 64


def asking_for(spec: SandboxSpec, capability: Capability) -> SandboxSpec:
    """The spec, with a wish that needs ``capability``."""
    match capability:
        case Capability.EGRESS:
            return replace(spec, egress=Egress())
        case Capability.MOUNTS:
            return replace(spec, mounts=(Mount(source=spec.writable_dir.parent, target="/mnt/shown"),))
        case Capability.DISK_LIMIT:
            return replace(spec, limits=Limits(disk_mib=DISK_MIB))
        case _:
            raise ValueError(f"a spec cannot ask for {capability}")


async def check_undeclared_is_refused(under_test: SandboxesUnderTest) -> None:
    """A wish for what the backend does not declare is `UnsupportedOperation`, never ignored, and leaves nothing."""
    for capability in {Capability.EGRESS, Capability.MOUNTS, Capability.DISK_LIMIT} - under_test.capabilities:
        async with nothing_left(under_test), under_test.open() as driver:
            wish = asking_for(under_test.spec(), capability)
            await expect_error(UnsupportedOperation, partial(driver.create, wish))
            await expect_error(SandboxNotFound, partial(driver.state, wish.id))


async def check_snapshots_are_declared(under_test: SandboxesUnderTest) -> None:
    """Without `Capability.SNAPSHOT`, ``save`` and ``restore`` are not there or raise `UnsupportedOperation`."""
    if Capability.SNAPSHOT in under_test.capabilities:
        return
    async with started(under_test) as (driver, sandbox_id):
        if isinstance(driver, Snapshots):
            folder = under_test.folder / "snapshot"
            await expect_error(UnsupportedOperation, partial(driver.save, sandbox_id, folder))
            await expect_error(UnsupportedOperation, partial(driver.restore, sandbox_id, folder))
            assert not folder.exists()


async def check_disk_size(under_test: SandboxesUnderTest) -> None:
    """With `Capability.DISK_LIMIT` the writable layer has the size that was asked for, and no more can be written."""
    if Capability.DISK_LIMIT not in under_test.capabilities:
        return
    spec = asking_for(under_test.spec(), Capability.DISK_LIMIT)
    async with started(under_test, spec) as (driver, sandbox_id), agent_of(driver, sandbox_id) as agent:
        await run_well(agent, under_test.commands.fill("/workspace/some", DISK_MIB // 2))
        status, _ = await run(agent, under_test.commands.fill("/workspace/more", DISK_MIB))
        assert status.as_shell() != 0, f"{DISK_MIB * 3 // 2} MiB were written to a disk of {DISK_MIB} MiB"


async def check_mounts(under_test: SandboxesUnderTest) -> None:
    """With `Capability.MOUNTS` a folder of this machine is shown inside, and read-only unless asked otherwise."""
    if Capability.MOUNTS not in under_test.capabilities:
        return
    shown = {name: under_test.folder / name for name in ("readable", "writable")}
    for folder in shown.values():
        folder.mkdir(mode=0o777)
        folder.chmod(0o777)
        (folder / "hello").write_text("from outside", encoding="utf-8")
    mounts = tuple(
        Mount(source=path, target=f"/mnt/{name}", writable=name == "writable") for name, path in shown.items()
    )
    commands = under_test.commands
    spec = replace(under_test.spec(), mounts=mounts)
    async with started(under_test, spec) as (driver, sandbox_id), agent_of(driver, sandbox_id) as agent:
        for name in shown:
            assert await run_well(agent, commands.read(f"/mnt/{name}/hello")) == "from outside"
        await run_well(agent, commands.write("/mnt/writable/back", "from inside"))
        status, _ = await run(agent, commands.write("/mnt/readable/back", "from inside"))
        assert status.as_shell() != 0
    assert (shown["writable"] / "back").read_text(encoding="utf-8") == "from inside"
    assert not (shown["readable"] / "back").exists()


CHECKS: tuple[Check, ...] = (
    check_undeclared_is_refused,
    check_snapshots_are_declared,
    check_disk_size,
    check_mounts,
)
