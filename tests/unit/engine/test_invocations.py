"""Calls between workers (spec protocol §1.7, §11 #1, #2, #12, #17 to #22)."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest


async def provide(worker: Any, *ids: str) -> None:
    for function_id in ids:
        await worker.send("registerfunction", id=function_id)
    await worker.settle()


async def test_first_frame_is_workerregistered(bench: Any) -> None:
    peer = await bench.transport.connect(bench.url)
    frame = json.loads((await peer.receive()).data)
    assert frame.keys() == {"type", "worker_id", "reattach_token"}
    assert frame["type"] == "workerregistered"
    assert uuid.UUID(frame["worker_id"]).version == 4
    assert uuid.UUID(frame["reattach_token"]) != uuid.UUID(frame["worker_id"])


async def test_call_and_result_between_two_workers(connect: Any) -> None:
    callee, caller = await connect(), await connect()
    await provide(callee, "a::f")
    call_id = await caller.start_call(
        "a::f", {"x": [1, {"y": None}]}, metadata={"tenant": 1}, traceparent="00-ab-cd-03", baggage="k=v"
    )
    call = await callee.expect("invokefunction")
    assert call.pop("invocation_id") != call_id
    assert call == {
        "type": "invokefunction",
        "function_id": "a::f",
        "data": {"x": [1, {"y": None}], "_caller_worker_id": caller.worker_id},
        "metadata": {"tenant": 1},
        "traceparent": "00-ab-cd-03",
        "baggage": "k=v",
    }


async def test_the_answer_echoes_the_callers_own_trace_context(connect: Any) -> None:
    callee, caller = await connect(), await connect()
    await provide(callee, "a::f")
    call_id = await caller.start_call("a::f", {}, traceparent="00-caller-03", baggage="a=b")
    call = await callee.expect("invokefunction")
    await callee.answer(call, {"old_value": None}, traceparent="00-callee-01", baggage="c=d")
    assert await caller.receive() == {
        "type": "invocationresult",
        "invocation_id": call_id,
        "function_id": "a::f",
        "result": {"old_value": None},
        "traceparent": "00-caller-03",
        "baggage": "a=b",
    }


@pytest.mark.parametrize("answer", [{"result": None}, {}, {"result": None, "error": None}])
async def test_null_results_leave_the_result_out(connect: Any, answer: dict[str, Any]) -> None:
    callee, caller = await connect(), await connect()
    await provide(callee, "a::f")
    call_id = await caller.start_call("a::f")
    call = await callee.expect("invokefunction")
    await callee.send("invocationresult", invocation_id=call["invocation_id"], function_id="a::f", **answer)
    assert await caller.receive() == {"type": "invocationresult", "invocation_id": call_id, "function_id": "a::f"}


@pytest.mark.parametrize("result", [0, False, "", [], {}, "null", 1e300, "é\u2028"])
async def test_results_that_are_not_null_pass_through(connect: Any, result: object) -> None:
    callee, caller = await connect(), await connect()
    await provide(callee, "a::f")
    call_id = await caller.start_call("a::f")
    await callee.answer(await callee.expect("invokefunction"), result)
    assert (await caller.result(call_id))["result"] == result


@pytest.mark.parametrize("stacktrace", [{"stacktrace": None}, {}])
async def test_a_null_stacktrace_is_never_sent(connect: Any, stacktrace: dict[str, Any]) -> None:
    callee, caller = await connect(), await connect()
    await provide(callee, "a::f")
    call_id = await caller.start_call("a::f")
    error = {"code": "invocation_failed", "message": "boom"} | stacktrace
    await callee.answer(await callee.expect("invokefunction"), error=error)
    assert await caller.result(call_id) == {
        "type": "invocationresult",
        "invocation_id": call_id,
        "function_id": "a::f",
        "error": {"code": "invocation_failed", "message": "boom"},
    }


async def test_a_stacktrace_passes_through(connect: Any) -> None:
    callee, caller = await connect(), await connect()
    await provide(callee, "a::f")
    call_id = await caller.start_call("a::f")
    error = {"code": "x", "message": "boom", "stacktrace": "at line 1"}
    await callee.answer(await callee.expect("invokefunction"), error=error)
    assert (await caller.result(call_id))["error"] == error


@pytest.mark.parametrize("data", [None, [1, 2], "text", 3, True, [{"_caller_worker_id": "kept"}]])
async def test_data_that_is_no_object_passes_unchanged(connect: Any, data: object) -> None:
    callee, caller = await connect(), await connect()
    await provide(callee, "a::f")
    await caller.start_call("a::f", data)
    assert (await callee.expect("invokefunction"))["data"] == data


async def test_missing_data_is_null(connect: Any) -> None:
    callee, caller = await connect(), await connect()
    await provide(callee, "a::f")
    await caller.send("invokefunction", invocation_id="i", function_id="a::f")
    call = await callee.expect("invokefunction")
    assert call["data"] is None


async def test_the_callers_id_cannot_be_forged(connect: Any) -> None:
    callee, caller = await connect(), await connect()
    await provide(callee, "a::f")
    forged = r'{"_caller_worker_id":"x","a":1,"\u005fcaller_worker_id":"y","_caller_worker_id":"z"}'
    await caller.send_text(f'{{"data":{forged},"function_id":"a::f","invocation_id":"i","type":"invokefunction"}}')
    raw = (await callee.peer.receive()).data
    assert raw.count(b"caller_worker_id") == 1
    assert json.loads(raw)["data"] == {"a": 1, "_caller_worker_id": caller.worker_id}


async def test_big_numbers_and_key_order_survive(connect: Any) -> None:
    callee, caller = await connect(), await connect()
    await provide(callee, "a::f")
    body = '{"z":12345678901234567890123.4500,"a":1e5,"m":{"b":1,"a":2}}'
    await caller.send_text(f'{{"type":"invokefunction","function_id":"a::f","invocation_id":"i","data":[{body}]}}')
    assert body.encode() in (await callee.peer.receive()).data


@pytest.mark.parametrize(
    "fields",
    [
        {"action": {"type": "void"}},
        {"action": {"type": "void"}, "invocation_id": "given"},
        {},
        {"invocation_id": None, "action": None, "metadata": None, "traceparent": None, "baggage": None},
        {"namespace": "default", "caller": {}, "message_type": "invokefunction"},
    ],
)
async def test_void_calls_get_no_answer_but_an_id_towards_the_callee(connect: Any, fields: dict[str, Any]) -> None:
    callee, caller = await connect(), await connect()
    await provide(callee, "a::f")
    await caller.send("invokefunction", function_id="a::f", data={"a": 1}, **fields)
    call = await callee.expect("invokefunction")
    assert str(uuid.UUID(call["invocation_id"])) == call["invocation_id"]
    assert call.keys() == {"type", "invocation_id", "function_id", "data"}
    assert call["data"] == {"a": 1, "_caller_worker_id": caller.worker_id}
    await callee.answer(call, "ignored")
    await callee.settle()
    await caller.expect_silence()


async def test_unknown_functions(connect: Any) -> None:
    caller = await connect()
    error = await caller.call_error("no::such", traceparent="t")
    assert error == {"code": "function_not_found", "message": "Function no::such not found"}
    await caller.send("invokefunction", function_id="no::such", data={}, action={"type": "void"})
    await caller.expect_silence()


async def test_a_worker_calls_its_own_function(connect: Any) -> None:
    worker = await connect()
    await provide(worker, "a::f")
    call_id = await worker.start_call("a::f", {"n": 1})
    call = await worker.expect("invokefunction")
    await worker.answer(call, "done")
    assert (await worker.result(call_id))["result"] == "done"


async def test_nested_calls_on_one_connection_do_not_lock(connect: Any) -> None:
    outer, inner = await connect(), await connect()
    await provide(outer, "o::f")
    await provide(inner, "i::f")
    call_id = await inner.start_call("o::f")
    first = await outer.expect("invokefunction")
    nested = await outer.start_call("i::f")
    second = await inner.expect("invokefunction")
    await inner.answer(second, 1)
    assert (await outer.result(nested))["result"] == 1
    await outer.answer(first, 2)
    assert (await inner.result(call_id))["result"] == 2


async def test_one_id_used_by_two_callers_and_twice_by_one(connect: Any) -> None:
    callee, first, second = await connect(), await connect(), await connect()
    await provide(callee, "a::f")
    same = str(uuid.uuid4())
    for caller, number in ((first, 1), (second, 2), (second, 3)):
        await caller.send("invokefunction", invocation_id=same, function_id="a::f", data=[number])
        await caller.settle()
    calls = [await callee.expect("invokefunction") for _ in range(3)]
    assert len({call["invocation_id"] for call in calls}) == 3
    for call in reversed(calls):
        await callee.answer(call, call["data"])
    assert (await first.result(same))["result"] == [1]
    assert [(await second.result(same))["result"] for _ in range(2)] == [[3], [2]]


async def test_only_the_callee_may_answer(connect: Any) -> None:
    callee, caller, thief = await connect(), await connect(), await connect()
    await provide(callee, "a::f")
    call_id = await caller.start_call("a::f")
    call = await callee.expect("invokefunction")
    for liar in (thief, caller):
        await liar.answer(call, "forged")
        await liar.send("invocationresult", invocation_id=call_id, function_id="a::f", result="forged")
        await liar.settle()
    await caller.expect_silence()
    await callee.answer(call, "real")
    assert (await caller.result(call_id))["result"] == "real"


async def test_late_and_duplicate_results_are_ignored(connect: Any) -> None:
    callee, caller = await connect(), await connect()
    await provide(callee, "a::f")
    call_id = await caller.start_call("a::f")
    call = await callee.expect("invokefunction")
    await callee.answer(call, 1)
    await callee.answer(call, 2)
    await callee.answer({"invocation_id": str(uuid.uuid4()), "function_id": "a::f"}, 3)
    await callee.settle()
    assert (await caller.result(call_id))["result"] == 1
    await caller.expect_silence()


async def test_a_result_comes_although_the_function_was_unregistered(connect: Any) -> None:
    callee, caller = await connect(), await connect()
    await provide(callee, "a::f")
    call_id = await caller.start_call("a::f")
    call = await callee.expect("invokefunction")
    await callee.send("unregisterfunction", id="a::f")
    await callee.answer(call, "after")
    assert (await caller.result(call_id))["result"] == "after"
    assert (await caller.call_error("a::f"))["code"] == "function_not_found"


async def test_enqueue_without_a_queue_worker(connect: Any) -> None:
    worker = await connect()
    await provide(worker, "a::f")
    error = await worker.call_error("a::f", {}, action={"type": "enqueue", "queue": "default"})
    assert error["code"] == "enqueue_error"
    assert "engine::queue::enqueue" in error["message"]
    await worker.expect_silence()


async def test_enqueue_calls_the_queue(bench: Any) -> None:
    items: list[Any] = []

    async def enqueue(call: Any) -> object:
        items.append((call.json(), call.metadata))
        return {"whatever": 1}

    bench.engine.client("queue").register_function("engine::queue::enqueue", enqueue)
    worker = await bench.worker()
    result = await worker.call(
        "a::f",
        {"n": 1},
        action={"type": "enqueue", "queue": "mail"},
        metadata={"dropped": True},
        traceparent="t",
        baggage="b",
    )
    assert result.keys() == {"messageReceiptId"}
    assert items == [
        (
            {
                "queue": "mail",
                "function_id": "a::f",
                "data": {"n": 1},
                "messageReceiptId": result["messageReceiptId"],
                "traceparent": "t",
                "baggage": "b",
            },
            None,
        )
    ]


async def test_enqueue_error_of_the_queue_and_missing_queue_name(bench: Any) -> None:
    async def refuse(call: Any) -> None:
        raise ValueError("queue is closed")

    bench.engine.client("queue").register_function("engine::queue::enqueue", refuse)
    worker = await bench.worker()
    error = await worker.call_error("a::f", action={"type": "enqueue", "queue": "mail"})
    assert error["code"] == "enqueue_error"
    assert "queue is closed" in error["message"]
    assert (await worker.call_error("a::f", action={"type": "enqueue"}))["code"] == "enqueue_error"


async def test_json_ping(connect: Any) -> None:
    worker = await connect()
    await worker.send("ping")
    assert await worker.receive() == {"type": "pong"}
    await worker.send("pong")
    await worker.expect_silence()
