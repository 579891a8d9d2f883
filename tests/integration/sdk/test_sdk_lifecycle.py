"""Workers that die, leave, lose their connection, and lose their engine."""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from iiitools.ports import reserved_port
from iiitools.sdks import SDKS, Sdk

from .conftest import Hub, open_clients, open_hub
from .driver import CallFailed, Client, end, open_client

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


async def fail_to_call(client: Client, function_id: str) -> CallFailed:
    with pytest.raises(CallFailed) as caught:
        await client.call(function_id, {})
    return caught.value


async def test_calls_to_a_worker_that_is_killed_are_stopped(hub: Hub, fleet: dict[Sdk, Client], sdk: Sdk) -> None:
    """Seed 003: an error of the SDK's own class with code ``invocation_stopped``, in every caller."""
    function_id = f"victim::{sdk.label}"
    errors: dict[Sdk, CallFailed] = {}

    async def wait_for_error(caller: Client) -> None:
        errors[caller.sdk] = await fail_to_call(caller, function_id)

    async with open_client(sdk, hub.url, hub.home, name=f"victim-{sdk.label}") as victim:
        await hub.offer(victim, function_id, "slow", seconds=60)
        async with trio.open_nursery() as nursery:
            for caller in fleet.values():
                nursery.start_soon(wait_for_error, caller)
            for _ in fleet:
                await victim.event("started")
            await end(victim, signal.SIGKILL)
    for caller, error in errors.items():
        assert error.sdk_error
        assert error.code == "invocation_stopped"
        assert error.type == ("InvocationError" if caller.generation >= (0, 21) else "IIIInvocationError")
    assert (await fail_to_call(fleet[sdk], function_id)).code == "function_not_found"


async def test_shutdown_on_sigterm_cleans_up(hub: Hub, fleet: dict[Sdk, Client], sdk: Sdk) -> None:
    """Seed 003: functions and triggers leave the registry, and calls in flight are stopped."""
    name, function_id, kind = f"leaver-{sdk.label}", f"leaver::{sdk.label}", f"leaver-kind-{sdk.label}"
    caller = fleet[sdk]
    async with open_client(sdk, hub.url, hub.home, name=name) as leaver:
        await leaver.do("provide", type=kind)
        await leaver.do("bind", handle="t", type="never-there", function_id=function_id, config={})
        await hub.offer(leaver, function_id, "slow", seconds=60)
        (worker_id,) = hub.worker_ids(name)
        async with trio.open_nursery() as nursery:

            async def expect_stopped() -> None:
                assert (await fail_to_call(caller, function_id)).code == "invocation_stopped"

            nursery.start_soon(expect_stopped)
            await leaver.event("started")
            assert await end(leaver, signal.SIGTERM) == 0
        await hub.wait_until_gone(worker_id)
    assert (await fail_to_call(caller, function_id)).code == "function_not_found"
    types = await caller.call("engine::trigger-types::list", {})
    assert kind not in [row["id"] for row in types["trigger_types"]]
    assert all(trigger.function_id != function_id for trigger in hub.engine.router.triggers)


async def test_a_dropped_connection_is_taken_up_again(hub: Hub, fleet: dict[Sdk, Client], client: Client) -> None:
    """After an abort: functions, trigger types and triggers are all there again, and calls go both ways."""
    other = fleet[SDKS[(SDKS.index(client.sdk) + 1) % len(SDKS)]]
    function_id, kind, theirs = f"again::{client.name}", f"again-{client.name}", f"again-other-{client.name}"
    await other.do("provide", type=theirs)
    await client.do("provide", type=kind)
    await hub.offer(client, function_id, "record")
    await hub.offer(other, f"again::other::{client.name}", "record")
    await client.do("bind", handle="again", type=theirs, function_id=function_id, config={"n": 1})
    await other.do("bind", handle=kind, type=kind, function_id=f"again::other::{client.name}", config={"n": 2})
    for side, of in ((other, theirs), (client, kind)):
        await side.event("bound", type=of)
    (before,) = hub.worker_ids(client.name)

    hub.drop(client.name)
    await hub.wait_until_gone(before)
    await hub.wait_for_function(client.name, function_id)

    assert (await other.event("bound", type=theirs))["config"] == {"n": 1}
    assert (await client.event("bound", type=kind))["config"] == {"n": 2}
    await other.do("fire", type=theirs, payload={"from": "other"})
    assert (await client.event("invoked", function_id=function_id))["data"]["from"] == "other"
    await client.do("fire", type=kind, payload={"from": "client"})
    assert (await other.event("invoked", function_id=f"again::other::{client.name}"))["data"]["from"] == "client"
    assert await other.call(function_id, {}) is None
    for side, handle in ((client, "again"), (other, kind)):
        await side.do("unbind", handle=handle)


@dataclass(frozen=True)
class Restarted:
    hub: Hub
    clients: dict[Sdk, Client]


@dataclass
class Run:
    """An engine in a task of its own, which may end before what was opened after it."""

    home: Path
    stop: trio.Event = field(default_factory=trio.Event)
    stopped: trio.Event = field(default_factory=trio.Event)

    async def run(self, port: int, *, task_status: trio.TaskStatus[Hub]) -> None:
        async with open_hub(self.home, port=port) as hub:
            task_status.started(hub)
            await self.stop.wait()
        self.stopped.set()


@pytest.fixture(scope="module")
async def restarted(anyio_backend: str, home: Path) -> AsyncGenerator[Restarted, None]:
    """An engine that took the port of another, with the workers of that one; each has a function and a trigger."""
    with reserved_port() as port:  # between the two it must not become somebody else's
        async with trio.open_nursery() as nursery:
            first = Run(home)
            hub: Hub = await nursery.start(first.run, port)
            async with open_clients(SDKS, hub.url, home) as clients:
                for sdk, client in clients.items():
                    kind, function_id = f"kept-{sdk.label}", f"kept::{sdk.label}"
                    await hub.offer(client, function_id, "record")
                    await client.do("bind", handle="k", type=kind, function_id=function_id, config={})
                    await client.do("provide", type=kind)
                    await client.event("bound")
                first.stop.set()
                await first.stopped.wait()
                second: Hub = await nursery.start(Run(home).run, port)
                yield Restarted(second, clients)
            nursery.cancel_scope.cancel()


async def test_a_restarted_engine_is_found_again(restarted: Restarted, sdk: Sdk) -> None:
    """On the same port: everything is registered anew without the worker's program doing anything."""
    client, function_id = restarted.clients[sdk], f"kept::{sdk.label}"
    await restarted.hub.wait_for_function(sdk.label, function_id)
    assert restarted.hub.worker_ids(sdk.label)
    await client.event("bound", type=f"kept-{sdk.label}")
    await client.do("fire", type=f"kept-{sdk.label}", payload={"n": 1})
    assert (await client.event("invoked", function_id=function_id))["data"]["n"] == 1
    assert await client.call(function_id, {"n": 2}) is None
