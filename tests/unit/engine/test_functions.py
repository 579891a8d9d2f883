"""Who owns which function (spec protocol §1.5)."""

from __future__ import annotations

from typing import Any

import pytest

from iii_core.protocol.limits import EngineLimits


async def functions(worker: Any) -> dict[str, str]:
    listed = await worker.call("engine::functions::list", {})
    return {row["function_id"]: row["worker_name"] for row in listed["functions"]}


async def test_registering_twice_is_idempotent(connect: Any) -> None:
    worker = await connect()
    await worker.send("registerfunction", id="a::f", description="old")
    await worker.send("registerfunction", id="a::f", description="new", request_format=None, invocation=None)
    listed = await worker.call("engine::functions::list", {})
    assert [(row["function_id"], row["description"]) for row in listed["functions"]] == [("a::f", "new")]
    await worker.expect_silence()


async def test_the_last_writer_wins_and_the_earlier_owner_cannot_take_back(connect: Any) -> None:
    first, second = await connect(), await connect()
    for worker, name in ((first, "first"), (second, "second")):
        await worker.describe(name=name)
        await worker.send("registerfunction", id="a::f")
        await worker.settle()
    await first.send("unregisterfunction", id="a::f")
    await first.settle()
    assert await functions(second) == {"a::f": "second"}
    await first.vanish()
    assert await functions(second) == {"a::f": "second"}
    await second.send("unregisterfunction", id="a::f")
    assert await functions(second) == {}


async def test_no_fall_back_to_an_earlier_owner(connect: Any) -> None:
    first, second = await connect(), await connect()
    for worker in (first, second):
        await worker.send("registerfunction", id="a::f")
        await worker.settle()
    await second.send("unregisterfunction", id="a::f")
    await second.settle()
    assert (await first.call_error("a::f"))["code"] == "function_not_found"


async def test_only_the_owner_may_unregister(connect: Any) -> None:
    owner, other = await connect(), await connect()
    await owner.send("registerfunction", id="a::f")
    await owner.settle()
    await other.send("unregisterfunction", id="a::f")
    await other.send("unregisterfunction", id="never::was")
    await other.settle()
    assert "a::f" in await functions(other)


@pytest.mark.parametrize("function_id", ["engine::workers::list", "engine::mine", "", "x" * 1025, "é" * 513])
async def test_refused_ids(connect: Any, function_id: str) -> None:
    worker = await connect()
    before = await worker.call("engine::functions::list", {"include_internal": True})
    await worker.send("registerfunction", id=function_id)
    assert await worker.call("engine::functions::list", {"include_internal": True}) == before
    assert "workers" in await worker.call("engine::workers::list", {})


@pytest.mark.parametrize(
    ("function_id", "owner"), [("engine::workers::list", "iii-engine-functions"), ("engine::mine", "")]
)
async def test_a_worker_is_told_that_an_id_is_the_engines(connect: Any, function_id: str, owner: str) -> None:
    """As the frame that SDKs from 0.23 on log; every other code would end them."""
    worker = await connect()
    await worker.send("registerfunction", id=function_id)
    assert await worker.expect("registrationrejected") == {
        "type": "registrationrejected",
        "code": "FUNCTION_NAMESPACE_CONFLICT",
        "namespace": "default",
        "function_id": function_id,
        "owner_worker_id": owner,
    }


@pytest.mark.parametrize("function_id", ["", "x" * 1025, "engine::" + "x" * 1025])
async def test_other_refusals_are_logged_alone(
    connect: Any, caplog: pytest.LogCaptureFixture, function_id: str
) -> None:
    worker = await connect()
    await worker.send("registerfunction", id=function_id)
    await worker.expect_silence()
    assert "refused the function" in caplog.text


async def test_an_id_at_the_limit_and_a_strange_one(connect: Any) -> None:
    worker = await connect()
    for function_id in ("x" * 1024, "stream::get(todos)", "enginex::f", "a b\n\u202e"):
        await worker.send("registerfunction", id=function_id)
        call_id = await worker.start_call(function_id)
        call = await worker.look_for("invokefunction", function_id=function_id)
        await worker.answer(call, 1)
        assert (await worker.result(call_id))["result"] == 1


async def test_registrations_are_capped_per_worker(open_bench: Any) -> None:
    async with open_bench(limits=EngineLimits(functions=3)) as bench:
        worker, other = await bench.worker(), await bench.worker()
        for number in (*range(5), 0):
            await worker.send("registerfunction", id=f"a::{number}", description=str(number))
        await worker.send("unregisterfunction", id="a::1")
        await worker.send("registerfunction", id="a::9")
        await other.send("registerfunction", id="b::0")
        await other.settle()
        assert (await functions(worker)).keys() == {"a::0", "a::2", "a::9", "b::0"}


async def test_the_size_of_a_registration_is_capped(open_bench: Any) -> None:
    async with open_bench(limits=EngineLimits(registration_bytes=1000)) as bench:
        worker = await bench.worker()
        await worker.send("registerfunction", id="a::small", metadata={"x": "y" * 900})
        await worker.send("registerfunction", id="a::big", metadata={"x": "y" * 1000})
        await worker.send("registerfunction", id="a::described", description="y" * 1000)
        assert (await functions(worker)).keys() == {"a::small"}


async def test_http_functions_are_not_dispatched_to_the_worker(connect: Any) -> None:
    worker = await connect()
    await worker.send("registerfunction", id="a::http", invocation={"url": "http://127.0.0.1:9/", "method": "POST"})
    await worker.expect_silence()
    error = await worker.call_error("a::http")
    assert error["code"] == "function_not_found"
    assert error["message"].startswith("Function a::http not found: it is to be called over HTTP")
    await worker.send("unregisterfunction", id="a::http")
    assert (await worker.call_error("a::http"))["message"] == "Function a::http not found"


async def test_a_function_may_turn_from_http_to_its_worker(connect: Any) -> None:
    worker, caller = await connect(), await connect()
    await worker.send("registerfunction", id="a::f", invocation={"url": "http://127.0.0.1:9/"})
    await worker.send("registerfunction", id="a::f")
    await worker.settle()
    call_id = await caller.start_call("a::f")
    await worker.answer(await worker.expect("invokefunction"), 1)
    assert (await caller.result(call_id))["result"] == 1
    await worker.send("unregisterfunction", id="a::f")
    await worker.settle()
    assert (await caller.call_error("a::f"))["message"] == "Function a::f not found"


async def test_old_messages_without_effect(connect: Any) -> None:
    worker = await connect()
    await worker.send("registerservice", id="svc", name="svc", description=None, parent_service_id=None)
    await worker.send("registerservice", id="svc", name=None)
    await worker.expect_silence()
