"""Trigger types and triggers (spec protocol §1.6, §11 #15 to #17; facts 10 to 14 of sdk-frames)."""

from __future__ import annotations

from typing import Any

import pytest

from iii_core.protocol.limits import EngineLimits


async def provide(worker: Any, type_id: str = "hook", **fields: Any) -> None:
    await worker.send("registertriggertype", id=type_id, description="d", **fields)
    await worker.settle()


async def bind(worker: Any, trigger_id: str = "t1", **fields: Any) -> None:
    given = {"trigger_type": "hook", "function_id": "a::f", "config": {"a": 1}} | fields
    await worker.send("registertrigger", id=trigger_id, **given)
    await worker.settle()


def forwarded(trigger_id: str = "t1", **fields: Any) -> dict[str, Any]:
    return {
        "type": "registertrigger",
        "id": trigger_id,
        "trigger_type": "hook",
        "function_id": "a::f",
        "config": {"a": 1},
    } | fields


async def active(worker: Any) -> list[str]:
    listed = await worker.call("engine::registered-triggers::list", {})
    return [row["id"] for row in listed["registered_triggers"]]


def dropped(trigger_id: str = "t1") -> dict[str, Any]:
    return {"type": "unregistertrigger", "id": trigger_id, "trigger_type": "hook"}


async def test_a_trigger_is_forwarded_to_the_provider(connect: Any) -> None:
    provider, owner = await connect(), await connect()
    await provide(provider)
    await bind(owner, metadata={"m": 1}, message_type="registertrigger")
    assert await provider.receive() == forwarded(metadata={"m": 1})
    await owner.expect_silence()
    assert await active(owner) == ["t1"]


@pytest.mark.parametrize(
    ("given", "config"), [({}, {}), ({"config": None}, None), ({"config": [1]}, [1]), ({"metadata": None}, {})]
)
async def test_a_missing_config_is_an_empty_object(connect: Any, given: dict[str, Any], config: object) -> None:
    provider, owner = await connect(), await connect()
    await provide(provider)
    await owner.send("registertrigger", id="t1", trigger_type="hook", function_id="a::f", **given)
    assert await provider.receive() == forwarded(config=config)


async def test_a_trigger_waits_for_its_type(connect: Any) -> None:
    owner, provider = await connect(), await connect()
    await bind(owner)
    await owner.expect_silence()
    assert await active(owner) == []
    await provide(provider)
    assert await provider.receive() == forwarded()
    assert await active(owner) == ["t1"]


async def test_a_provider_that_goes_leaves_the_trigger_waiting_for_the_next(connect: Any) -> None:
    owner, first, second = await connect(), await connect(), await connect()
    await provide(first)
    await bind(owner)
    await first.expect("registertrigger")
    await first.vanish()
    assert await active(owner) == []
    await provide(second)
    assert await second.receive() == forwarded()
    await owner.expect_silence()


async def test_a_provider_that_takes_its_type_back(connect: Any) -> None:
    owner, provider = await connect(), await connect()
    await provide(provider)
    await bind(owner)
    await provider.expect("registertrigger")
    await owner.send("unregistertriggertype", id="hook")
    await owner.settle()
    assert await active(owner) == ["t1"], "only the provider may"
    await provider.send("unregistertriggertype", id="hook", description="d")
    await provider.expect_silence()
    assert await active(owner) == []
    await provide(provider)
    assert await provider.receive() == forwarded()


async def test_another_provider_takes_over(connect: Any) -> None:
    owner, first, second = await connect(), await connect(), await connect()
    await provide(first)
    await bind(owner)
    await first.expect("registertrigger")
    await provide(second)
    assert await second.receive() == forwarded()
    assert await first.receive() == dropped()
    await first.vanish()
    assert await active(owner) == ["t1"]
    await second.expect_silence()


async def test_a_provider_that_registers_its_type_again_never_holds_a_trigger_twice(connect: Any) -> None:
    owner, provider = await connect(), await connect()
    await bind(owner)
    await provide(provider)
    await provide(provider, call_request_format={})
    assert [await provider.receive() for _ in range(3)] == [forwarded(), dropped(), forwarded()]
    await provider.expect_silence()


async def test_a_refusal_parks_the_trigger_and_tells_the_registrant(connect: Any) -> None:
    owner, provider = await connect(), await connect()
    await provide(provider)
    await bind(owner)
    await provider.expect("registertrigger")
    error = {"code": "trigger_registration_failed", "message": "bad topic"}
    refusal = {"id": "t1", "trigger_type": "lies", "function_id": "lies", "error": error | {"stacktrace": None}}
    await provider.send("triggerregistrationresult", **refusal)
    await provider.settle()
    assert await owner.receive() == {
        "type": "triggerregistrationresult",
        "id": "t1",
        "trigger_type": "hook",
        "function_id": "a::f",
        "error": error,
    }
    assert await active(owner) == []
    await provide(provider)
    assert await provider.receive() == forwarded()
    await provider.send("triggerregistrationresult", id="t1", trigger_type="hook", function_id="a::f", error=None)
    await provider.settle()
    await owner.expect_silence()
    assert await active(owner) == ["t1"]


async def test_only_the_provider_may_refuse(connect: Any) -> None:
    owner, provider, liar = await connect(), await connect(), await connect()
    await provide(provider)
    await bind(owner)
    error = {"code": "x", "message": "forged"}
    await liar.send("triggerregistrationresult", id="t1", trigger_type="hook", function_id="a::f", error=error)
    await owner.send("triggerregistrationresult", id="t1", trigger_type="hook", function_id="a::f", error=error)
    await liar.settle()
    await owner.expect_silence()
    assert await active(owner) == ["t1"]


async def test_unregistering_by_anybody_tells_the_provider_the_type(connect: Any) -> None:
    owner, provider, other = await connect(), await connect(), await connect()
    await provide(provider)
    await bind(owner)
    await provider.expect("registertrigger")
    await other.send("unregistertrigger", id="t1", message_type="unregistertrigger")
    assert await provider.receive() == dropped()
    await other.send("unregistertrigger", id="t1", trigger_type="wrong")
    await other.settle()
    await provider.expect_silence()


async def test_unregistering_a_waiting_trigger(connect: Any) -> None:
    owner, provider = await connect(), await connect()
    await bind(owner)
    await owner.send("unregistertrigger", id="t1", trigger_type=None)
    await owner.settle()
    await provide(provider)
    await provider.expect_silence()


async def test_a_registrant_that_goes_takes_its_triggers_along(connect: Any) -> None:
    owner, provider, other = await connect(), await connect(), await connect()
    await provide(provider)
    await bind(owner, "t1")
    await bind(other, "t2")
    await bind(owner, "t3", trigger_type="nobody")
    await owner.vanish()
    assert [await provider.receive() for _ in range(3)] == [forwarded("t1"), forwarded("t2"), dropped("t1")]
    await provide(provider, "nobody")
    await provider.expect_silence()
    assert await active(other) == ["t2"]


async def test_the_same_registration_again_changes_the_owner_alone(connect: Any) -> None:
    first, second, provider = await connect(), await connect(), await connect()
    await provide(provider)
    for owner in (first, first, second):
        await bind(owner)
    await first.vanish()
    assert await active(second) == ["t1"]
    assert await provider.receive() == forwarded()
    await provider.expect_silence()
    await second.vanish()
    assert await provider.receive() == dropped()


async def test_a_changed_registration_of_an_id_is_bound_anew(connect: Any) -> None:
    owner, provider, other = await connect(), await connect(), await connect()
    await provide(provider)
    await provide(other, "other")
    await bind(owner)
    await bind(owner, config={"a": 2})
    await bind(owner, trigger_type="other")
    expected = [forwarded(), dropped(), forwarded(config={"a": 2}), dropped()]
    assert [await provider.receive() for _ in expected] == expected
    assert await other.receive() == forwarded(trigger_type="other")
    await provider.expect_silence()


async def test_a_trigger_before_its_function_and_after(connect: Any) -> None:
    owner, provider = await connect(), await connect()
    await provide(provider)
    await bind(owner)
    binding = await provider.expect("registertrigger")
    await provider.start_call(binding["function_id"])
    assert (await provider.receive())["error"]["code"] == "function_not_found"
    await owner.send("registerfunction", id="a::f")
    await owner.settle()
    await provider.start_call(binding["function_id"], metadata={"m": 1})
    assert (await owner.expect("invokefunction"))["metadata"] == {"m": 1}
    await owner.send("unregisterfunction", id="a::f")
    await owner.settle()
    assert await active(owner) == ["t1"], "unregistering a function leaves its triggers"


async def test_a_worker_provides_for_itself(connect: Any) -> None:
    worker = await connect()
    await bind(worker)
    await provide(worker)
    assert await worker.receive() == forwarded()
    await worker.send("unregistertrigger", id="t1")
    assert await worker.receive() == dropped()


async def test_engine_trigger_types_cannot_be_taken(connect: Any) -> None:
    thief, owner = await connect(), await connect()
    await provide(thief, "engine::workers-available")
    await bind(owner, trigger_type="engine::workers-available")
    await thief.expect_silence()


async def test_limits_are_told_to_the_registrant(open_bench: Any) -> None:
    async with open_bench(limits=EngineLimits(triggers=2, trigger_types=1, registration_bytes=1000)) as bench:
        worker, provider = await bench.worker(), await bench.worker()
        await provide(provider)
        await provide(provider, "second")
        await provide(provider)
        types = await provider.call("engine::trigger-types::list", {})
        assert [row["id"] for row in types["trigger_types"]] == ["hook"]
        for trigger_id in ("t1", "t2", "t1"):
            await bind(worker, trigger_id)
        await bind(worker, "t3")
        for fields in ({"id": "x" * 1025}, {"id": "t2", "config": "x" * 1000}):
            await worker.send("registertrigger", trigger_type="hook", function_id="a::f", **fields)
        errors = [(await worker.expect("triggerregistrationresult"))["error"] for _ in range(3)]
        assert {error["code"] for error in errors} == {"limit_exceeded"}
        assert await active(provider) == ["t1", "t2"]


async def test_durable_triggers_survive_their_caller(connect: Any) -> None:
    caller, provider = await connect(), await connect()
    await provide(provider)
    pending = await caller.start_call(
        "engine::register_trigger", {"trigger_type": "hook", "function_id": "a::f", "config": {"a": 1}, "metadata": 7}
    )
    binding = await provider.expect("registertrigger")
    await caller.expect_silence()
    await provider.send("triggerregistrationresult", id=binding["id"], trigger_type="hook", function_id="a::f")
    assert (await caller.result(pending))["result"] == {"id": binding["id"]}
    assert binding == forwarded(binding["id"], metadata=7)
    await caller.vanish()
    await provider.expect_silence()
    assert await provider.call("engine::unregister_trigger", {"id": binding["id"]}) == {"removed": True}
    assert await provider.receive() == dropped(binding["id"])
    assert await provider.call("engine::unregister_trigger", {"id": binding["id"]}) == {"removed": False}


async def test_a_refused_durable_trigger_is_an_error_and_gone(connect: Any) -> None:
    caller, provider = await connect(), await connect()
    await provide(provider)
    given = {"trigger_type": "hook", "function_id": "a::f"}
    pending = await caller.start_call("engine::register_trigger", given)
    binding = await provider.expect("registertrigger")
    assert binding["config"] is None
    error = {"code": "no", "message": "bad"}
    await provider.send("triggerregistrationresult", **(given | {"id": binding["id"], "error": error}))
    answer = await caller.result(pending)
    assert answer["error"] == {"code": "trigger_registration_failed", "message": "bad"}
    await provide(provider)
    await provider.expect_silence()


@pytest.mark.parametrize("given", [{}, {"trigger_type": "x"}, {"trigger_type": 1, "function_id": "a"}, None, []])
async def test_wrong_arguments_of_the_trigger_functions(connect: Any, given: object) -> None:
    worker = await connect()
    assert (await worker.call_error("engine::register_trigger", given))["code"] == "INVALID_ARGUMENTS"
    assert (await worker.call_error("engine::unregister_trigger", given))["code"] == "INVALID_ARGUMENTS"


async def test_a_durable_trigger_without_a_provider_waits(connect: Any) -> None:
    caller, provider = await connect(), await connect()
    result = await caller.call("engine::register_trigger", {"trigger_type": "hook", "function_id": "a::f"})
    await provide(provider)
    assert (await provider.expect("registertrigger"))["id"] == result["id"]
