"""Calls between SDKs: results, errors, void, metadata, sizes."""

from __future__ import annotations

import itertools
import signal

import pytest

from iiitools.sdks import SDKS, Sdk

from .conftest import Hub
from .driver import CallFailed, Client, end, open_client

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


def other_than(sdk: Sdk) -> Sdk:
    """The next SDK in the list, so that all take part as the other side."""
    return SDKS[(SDKS.index(sdk) + 1) % len(SDKS)]


@pytest.mark.parametrize(("caller", "callee"), list(itertools.product(SDKS, SDKS)), ids=lambda sdk: sdk.label)
async def test_any_calls_any(hub: Hub, fleet: dict[Sdk, Client], caller: Sdk, callee: Sdk) -> None:
    function_id = f"echo::{caller.label}::{callee.label}"
    await hub.offer(fleet[callee], function_id, "echo")
    payload = {"text": "grüße \N{GRINNING FACE}", "list": [1, 2.5, None, True], "deep": {"er": {}}}
    result = await fleet[caller].call(function_id, payload)
    (caller_id,) = hub.worker_ids(caller.label)
    assert result == {"echo": payload | {"_caller_worker_id": caller_id}, "metadata": None}


async def test_an_exception_of_the_handler_is_invocation_failed(
    hub: Hub, fleet: dict[Sdk, Client], client: Client
) -> None:
    function_id = f"boom::{client.name}"
    await hub.offer(client, function_id, "boom")
    for caller in (client, fleet[other_than(client.sdk)]):
        with pytest.raises(CallFailed) as caught:
            await caller.call(function_id, {})
        assert caught.value.sdk_error
        assert caught.value.code == "invocation_failed"
        assert "boom \N{COLLISION SYMBOL}" in caught.value.message
        assert caught.value.stacktrace


async def test_an_unknown_function_is_function_not_found(client: Client, hub: Hub) -> None:
    with pytest.raises(CallFailed) as caught:
        await client.call("no::such", {})
    assert caught.value.sdk_error
    assert caught.value.code == "function_not_found"
    assert "no::such" in caught.value.message
    # The class had another name before 0.21: seed 003 calls it IIIInvocationError.
    new = client.sdk.generation >= (0, 21)
    assert caught.value.type == ("InvocationError" if new else "IIIInvocationError")


async def test_a_result_of_nothing_is_nothing(hub: Hub, fleet: dict[Sdk, Client], client: Client) -> None:
    function_id = f"none::{client.name}"
    await hub.offer(client, function_id, "none")
    assert await fleet[other_than(client.sdk)].call(function_id) is None


@pytest.mark.parametrize("payload", [None, 0, False, "", "text", [1, {"a": 2}], {}], ids=repr)
async def test_payloads_that_are_no_objects(
    hub: Hub, fleet: dict[Sdk, Client], client: Client, payload: object
) -> None:
    function_id = f"any::{client.name}"
    if all(function_id not in worker.functions for worker in hub.engine.workers):
        await hub.offer(client, function_id, "echo")
    result = await fleet[other_than(client.sdk)].call(function_id, payload)
    echo = result["echo"]
    if isinstance(echo, dict):
        del echo["_caller_worker_id"]
    assert echo == payload


async def test_a_worker_that_asks_for_a_reserved_id_goes_on(hub: Hub, fleet: dict[Sdk, Client], client: Client) -> None:
    """It is told by a frame that every other code of would end newer SDKs for good, and that older ones do not know."""
    await client.do("function", function_id="engine::workers::list", behaviour="echo")
    await hub.offer(client, f"after::{client.name}", "echo")
    result = await fleet[other_than(client.sdk)].call(f"after::{client.name}", {"a": 1})
    assert result["echo"]["a"] == 1
    assert "workers" in await client.call("engine::workers::list", {})


async def test_void_calls(hub: Hub, fleet: dict[Sdk, Client], client: Client) -> None:
    function_id = f"record::{client.name}"
    await hub.offer(client, function_id, "record")
    caller = fleet[other_than(client.sdk)]
    for number in range(20):
        assert await caller.call(function_id, {"number": number}, void=True) is None
    # Commands run side by side in the clients, so the order is theirs.
    seen = [(await client.event("invoked", function_id=function_id))["data"]["number"] for _ in range(20)]
    assert sorted(seen) == list(range(20))
    await caller.call("no::such", {}, void=True)  # nobody answers, nothing breaks
    assert await client.call(function_id, {"number": 20}) is None


async def test_metadata_of_a_call(hub: Hub, fleet: dict[Sdk, Client], client: Client) -> None:
    if not client.has_metadata:
        pytest.skip("this release has no metadata on calls")
    caller = next(found for found in fleet.values() if found.has_metadata and found is not client)
    function_id = f"metadata::{client.name}"
    await hub.offer(client, function_id, "echo")
    metadata = {"tenant": "t1", "deep": [1, None]}
    result = await caller.call(function_id, {"a": 1}, metadata=metadata)
    assert result["metadata"] == metadata
    assert result["echo"]["a"] == 1


async def test_a_handler_calls_back(hub: Hub, fleet: dict[Sdk, Client], client: Client) -> None:
    other = fleet[other_than(client.sdk)]
    await hub.offer(client, f"nested::{client.name}", "nested")
    await hub.offer(other, f"nested::to::{client.name}", "echo")
    own = f"nested::own::{client.name}"
    await hub.offer(client, own, "echo")
    for target in (f"nested::to::{client.name}", own):
        request = {"function_id": target, "payload": {"x": 1}}
        result = await other.call(f"nested::{client.name}", {"request": request})
        assert result["nested"]["echo"]["x"] == 1


async def test_a_caller_that_gives_up_is_not_confused_by_the_late_answer(
    hub: Hub, fleet: dict[Sdk, Client], client: Client
) -> None:
    callee = fleet[other_than(client.sdk)]
    function_id = f"slow::{client.name}"
    await hub.offer(callee, function_id, "held")
    with pytest.raises(CallFailed) as caught:
        await client.call(function_id, {}, timeout_ms=100)
    assert caught.value.code == "TIMEOUT"
    await callee.do("release", function_id=function_id)
    assert await client.call(function_id, {}) == "late"


async def test_an_unregistered_function_is_gone(hub: Hub, client: Client) -> None:
    function_id = f"brief::{client.name}"
    await hub.offer(client, function_id, "echo")
    await client.call(function_id, {})
    await client.do("unregister", function_id=function_id)
    with pytest.raises(CallFailed) as caught:
        await client.call(function_id, {})
    assert caught.value.code == "function_not_found"


async def test_two_workers_of_one_name(hub: Hub, client: Client) -> None:
    async with open_client(client.sdk, hub.url, hub.home, name=client.name) as twin:
        await twin.do("function", function_id=f"twin::{client.name}", behaviour="who")
        with_twin = await hub.wait_for_function(client.name, f"twin::{client.name}")
        await hub.offer(client, f"first::{client.name}", "who")
        assert len(hub.worker_ids(client.name)) == 2
        first = await twin.call(f"first::{client.name}", {})
        second = await client.call(f"twin::{client.name}", {})
        assert first["name"] == second["name"] == client.name
        assert first["pid"] != second["pid"]
        await end(twin, signal.SIGKILL)
        await hub.wait_until_gone(with_twin.id)
    assert (await client.call(f"first::{client.name}", {}))["pid"] == first["pid"]


MIB = 1024 * 1024


async def test_2_mib_there(hub: Hub, fleet: dict[Sdk, Client], client: Client) -> None:
    callee = fleet[SDKS[0]]
    function_id = f"length::{client.name}"
    await hub.offer(callee, function_id, "length")
    assert await client.call(function_id, size=2 * MIB) == {"length": 2 * MIB}


async def test_2_mib_back(hub: Hub, fleet: dict[Sdk, Client], client: Client) -> None:
    if client.sdk.language == "python" and client.sdk.generation < (0, 25):
        pytest.skip("this release takes messages of 1 MiB at most")
    function_id = f"blob::{client.name}"
    await hub.offer(fleet[SDKS[0]], function_id, "blob")
    assert await client.call(function_id, {"size": 2 * MIB}, measure=True) == 2 * MIB


async def test_20_mib_there(hub: Hub, fleet: dict[Sdk, Client], client: Client) -> None:
    """Python 0.25 sends this as a fragmented text message."""
    callee = fleet[SDKS[0]]
    function_id = f"long::{client.name}"
    await hub.offer(callee, function_id, "length")
    assert await client.call(function_id, size=20 * MIB) == {"length": 20 * MIB}


async def test_a_message_over_an_sdk_s_own_limit(hub: Hub, fleet: dict[Sdk, Client], client: Client) -> None:
    """Such a client drops its link and comes back; its callers learn that the call was stopped."""
    if client.sdk.language == "node" or client.sdk.generation >= (0, 25):
        pytest.skip("this release takes messages of 64 MiB and more")
    (before,) = hub.worker_ids(client.name)
    function_id = f"small::{client.name}"
    await hub.offer(client, function_id, "length")
    with pytest.raises(CallFailed) as caught:
        await fleet[SDKS[0]].call(function_id, size=2 * MIB)
    assert caught.value.code == "invocation_stopped"
    assert before not in hub.worker_ids(client.name)
    await hub.wait_for_function(client.name, function_id)
    assert await fleet[SDKS[0]].call(function_id, size=1000) == {"length": 1000}
