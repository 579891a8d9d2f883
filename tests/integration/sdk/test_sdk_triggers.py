"""Trigger types of one SDK, triggers of another; the engine's own discovery triggers (seed 003)."""

from __future__ import annotations

import signal

import pytest

from iiitools.sdks import SDKS, Sdk

from .conftest import Hub
from .driver import Client, end, open_client

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


def provider_for(fleet: dict[Sdk, Client], client: Client) -> Client:
    """A client of another release, in the other language for most."""
    return fleet[SDKS[(SDKS.index(client.sdk) + 3) % len(SDKS)]]


async def test_a_trigger_of_another_sdks_type(hub: Hub, fleet: dict[Sdk, Client], client: Client) -> None:
    provider = provider_for(fleet, client)
    kind, function_id = f"kind-{client.name}", f"on::kind::{client.name}"
    await provider.do("provide", type=kind)
    await hub.offer(client, function_id, "record")
    metadata = {"from": client.name}
    await client.do("bind", handle="t", type=kind, function_id=function_id, config={"topic": "a"}, metadata=metadata)

    bound = await provider.event("bound", type=kind)
    assert bound["function_id"] == function_id
    assert bound["config"] == {"topic": "a"}
    assert bound["metadata"] in (metadata, None)  # 0.11 does not hand it to the provider
    await provider.do("fire", type=kind, payload={"n": 1})
    invoked = await client.event("invoked", function_id=function_id)
    assert invoked["data"]["n"] == 1
    if client.has_metadata and provider.has_metadata:
        assert invoked["metadata"] == metadata

    await client.do("unbind", handle="t")
    if provider.sdk.generation < (0, 19):
        return  # 0.11 never tells its provider that a trigger is gone
    await provider.event("unbound", type=kind, function_id=function_id)
    await provider.do("fire", type=kind, payload={"n": 2})
    await client.call(function_id, {"n": 3})
    assert (await client.event("invoked", function_id=function_id))["data"]["n"] == 3


async def test_a_trigger_waits_for_its_type_and_is_bound_again_to_a_new_provider(hub: Hub, client: Client) -> None:
    kind, function_id = f"late-{client.name}", f"on::late::{client.name}"
    await hub.offer(client, function_id, "record")
    await client.do("bind", handle="late", type=kind, function_id=function_id, config={"k": 1})
    for number in (1, 2):
        async with open_client(client.sdk, hub.url, hub.home, name=f"provider-{client.name}") as provider:
            await provider.do("provide", type=kind)
            assert (await provider.event("bound", type=kind))["config"] == {"k": 1}
            await provider.do("fire", type=kind, payload={"number": number})
            assert (await client.event("invoked", function_id=function_id))["data"]["number"] == number
            await end(provider, signal.SIGKILL)
    await client.do("unbind", handle="late")


async def test_a_refused_trigger_is_parked_and_tried_again(hub: Hub, client: Client) -> None:
    kind, function_id = f"picky-{client.name}", f"on::picky::{client.name}"
    await hub.offer(client, function_id, "record")
    async with open_client(client.sdk, hub.url, hub.home, name=f"picky-{client.name}") as provider:
        await provider.do("provide", type=kind)
        await client.do("bind", handle="good", type=kind, function_id=function_id, config={})
        await client.do("bind", handle="bad", type=kind, function_id=function_id, config={"refuse": True})
        await provider.event("bound", type=kind)
        await provider.do("fire", type=kind, payload={"n": 1})
        await client.event("invoked", function_id=function_id)
        assert not provider.seen("bound", type=kind)
    for handle in ("good", "bad"):
        await client.do("unbind", handle=handle)


async def test_workers_available(hub: Hub, client: Client) -> None:
    function_id = f"discovery::on-workers::{client.name}"
    await hub.offer(client, function_id, "record")
    await client.do("bind", handle="w", type="engine::workers-available", function_id=function_id, config={})
    await client.call(function_id, {"event": "mine"})  # the trigger is registered by now: frames are handled in order
    async with open_client(SDKS[0], hub.url, hub.home, name=f"guest-of-{client.name}") as guest:
        guest_function = f"guest::{client.name}"
        await hub.offer(guest, guest_function, "echo")
        (guest_id,) = hub.worker_ids(guest.name)
        connected = await invoked(client, function_id, event="worker_connected", worker_id=guest_id)
        assert connected["event"] == "worker_connected"
        await end(guest, signal.SIGTERM)
    gone = await invoked(client, function_id, event="worker_disconnected", worker_id=guest_id)
    assert gone["event"] == "worker_disconnected"
    await client.do("unbind", handle="w")


async def test_functions_available(hub: Hub, client: Client) -> None:
    function_id = f"discovery::on-functions::{client.name}"
    await hub.offer(client, function_id, "record")
    await client.do("bind", handle="f", type="engine::functions-available", function_id=function_id, config={})
    await client.call(function_id, {"event": "mine"})
    new = f"discovery::new::{client.name}"
    await client.do("function", function_id=new, behaviour="echo")
    while True:
        data = (await client.event("invoked", function_id=function_id))["data"]
        if new in [function["function_id"] for function in data.get("functions", ())]:
            break
    assert data["event"] == "functions_changed"
    assert function_id in [function["function_id"] for function in data["functions"]]
    await client.do("unbind", handle="f")


async def invoked(client: Client, function_id: str, **wanted: object) -> dict[str, object]:
    """The data of the invocation that has these values; earlier ones are thrown away."""
    while True:
        data = (await client.event("invoked", function_id=function_id))["data"]
        if all(data.get(key) == value for key, value in wanted.items()):
            return data
