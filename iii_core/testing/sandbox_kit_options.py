"""The third part of the sandbox conformance kit: what a backend may have or not have, and must be honest about."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import trio

from iii_core.errors import SandboxNotFound, UnsupportedOperation
from iii_core.sandbox.agent import Agent
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


async def check_no_network(under_test: SandboxesUnderTest) -> None:
    """A sandbox whose spec has no egress reaches nobody on this machine."""
    async with running(under_test, under_test.spec()) as agent, listening() as listener:
        await reaches_nobody(under_test, agent, listener, set(own_addresses()))


async def check_egress(under_test: SandboxesUnderTest) -> None:
    """With `Capability.EGRESS` there is a way out and a name server, and no way back to this machine."""
    if Capability.EGRESS not in under_test.capabilities:
        return
    spec = asking_for(under_test.spec(), Capability.EGRESS)
    read = under_test.commands.read
    async with running(under_test, spec) as agent, listening() as listener:
        routes = await run_well(agent, read("/proc/net/route"))
        gateways = {gateway for target, gateway in map(parse_route, routes.splitlines()[1:]) if target == "0.0.0.0"}
        assert gateways, "there is no way out"
        words = [line.split() for line in (await run_well(agent, read("/etc/resolv.conf"))).splitlines()]
        nameservers = {line[1] for line in words if line[:1] == ["nameserver"]}
        assert nameservers, "no name server is named in /etc/resolv.conf"
        await reaches_nobody(under_test, agent, listener, {*own_addresses(), *gateways, *nameservers})


@asynccontextmanager
async def running(under_test: SandboxesUnderTest, spec: SandboxSpec) -> AsyncGenerator[Agent]:
    """The agent of a sandbox."""
    async with started(under_test, spec) as (driver, sandbox_id), agent_of(driver, sandbox_id) as agent:
        yield agent


def parse_route(line: str) -> tuple[str, str]:
    """Target and gateway of a line of ``/proc/net/route``: hexadecimal, in the machine's byte order."""
    _, target, gateway, *_ = line.split()
    as_text = (socket.inet_ntoa(int(text, 16).to_bytes(4, sys.byteorder)) for text in (target, gateway))
    return next(as_text), next(as_text)


def own_addresses() -> list[str]:
    """Loopback, and the address that this machine shows outside, if it has one."""
    found = ["127.0.0.1"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # nothing is sent
        found.append(probe.getsockname()[0])
    return found


@asynccontextmanager
async def listening() -> AsyncGenerator[trio.SocketListener]:
    """A server at all addresses of this machine."""
    (listener,) = await trio.open_tcp_listeners(0, host="0.0.0.0")
    async with listener:
        yield listener


async def reaches_nobody(
    under_test: SandboxesUnderTest, agent: Agent, listener: trio.SocketListener, addresses: set[str]
) -> None:
    """Whoever connects from inside is turned away, and nobody arrives here."""
    port: int = listener.socket.getsockname()[1]
    for address in sorted(addresses):
        command = under_test.commands.connect(address, port)
        status, printed = await run(agent, command)
        assert status.as_shell() not in (126, 127), f"{command} cannot be run inside: {printed}"
        assert status.as_shell() != 0, f"{address} was reached from inside"
    with trio.move_on_after(0.1):
        async with await listener.accept():
            raise AssertionError("somebody has arrived from inside")


CHECKS: tuple[Check, ...] = (
    check_undeclared_is_refused,
    check_snapshots_are_declared,
    check_disk_size,
    check_mounts,
    check_no_network,
    check_egress,
)
