"""What is left of a worker that goes, and what a worker finds that comes back (spec protocol §1.10; seed: shutdown)."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
import trio

from iii_core.testing.wire import WireWorker

REGISTRATION: list[dict[str, Any]] = [
    {"type": "registertriggertype", "id": "hook", "description": "d"},
    {"type": "registerfunction", "id": "a::f"},
    {"type": "registerfunction", "id": "a::g", "description": "g"},
    {"type": "registertrigger", "id": "t1", "trigger_type": "hook", "function_id": "a::f", "config": {"n": 1}},
    {"type": "registertrigger", "id": "t2", "trigger_type": "other", "function_id": "a::g", "config": {}},
    {
        "type": "invokefunction",
        "function_id": "engine::workers::register",
        "data": {"name": "w", "runtime": "python", "version": "0.19.7", "pid": 7},
        "action": {"type": "void"},
    },
]


async def play(worker: WireWorker, frames: list[dict[str, Any]]) -> None:
    for frame in frames:
        await worker.send(**frame)


async def state(observer: WireWorker) -> dict[str, Any]:
    """All that discovery shows, without what differs from one connection to the next."""
    workers = (await observer.call("engine::workers::list", {}))["workers"]
    for row in workers:
        row["id"] = row["connected_at_ms"] = None
    return {
        "workers": [row for row in workers if row["name"] != "observer"],
        "functions": await observer.call("engine::functions::list", {}),
        "triggers": await observer.call("engine::triggers::list", {}),
        "types": await observer.call("engine::trigger-types::list", {}),
    }


async def observer_of(bench: Any) -> WireWorker:
    observer: WireWorker = await bench.worker()
    await observer.describe(name="observer")
    await observer.send("registertriggertype", id="other", description="o")
    await observer.settle()
    return observer


async def gone(bench: Any, worker: WireWorker) -> None:
    with trio.fail_after(20):
        async for workers in bench.engine.worker_changes():
            if all(found.id != worker.worker_id for found in workers):
                return


async def leave(worker: WireWorker, how: str) -> None:
    if how == "abrupt":
        worker.peer.abort()
    else:
        await worker.peer.close(1000)


@pytest.mark.parametrize("how", ["graceful", "abrupt"])
async def test_both_ends_leave_the_same_state(bench: Any, how: str) -> None:
    observer = await observer_of(bench)
    empty = await state(observer)
    worker = await bench.worker()
    await play(worker, REGISTRATION)
    await worker.settle()
    assert await state(observer) != empty
    call_id = await observer.start_call("a::f", {})
    await worker.look_for("invokefunction")
    await leave(worker, how)
    assert (await observer.result(call_id))["error"] == {"code": "invocation_stopped", "message": "Invocation stopped"}
    await gone(bench, worker)
    assert await state(observer) == empty
    assert (await observer.receive())["type"] == "registertrigger"
    assert await observer.receive() == {"type": "unregistertrigger", "id": "t2", "trigger_type": "other"}
    assert (await observer.call_error("a::f"))["code"] == "function_not_found"


@pytest.mark.parametrize("reattach", [True, False], ids=["reattach", "no-reattach"])
@pytest.mark.parametrize("seen", [True, False], ids=["loss-seen-first", "loss-seen-late"])
@pytest.mark.parametrize("cut", range(len(REGISTRATION) + 1))
async def test_a_cut_at_any_point_of_registration_loses_nothing(
    bench: Any, cut: int, reattach: bool, seen: bool
) -> None:
    """The client comes back and replays; whether the engine noticed the loss before or after makes no difference."""
    observer = await observer_of(bench)
    whole = await bench.worker()
    await play(whole, REGISTRATION)
    await whole.settle()
    expected = await state(observer)
    whole.peer.abort()
    await gone(bench, whole)

    first = await bench.worker()
    await play(first, REGISTRATION[:cut])
    await first.settle()
    if seen:
        first.peer.abort()
        await gone(bench, first)
    second = await bench.worker()
    if reattach:
        await second.send("reattach", previous_worker_id=first.worker_id, reattach_token=first.reattach_token)
    await play(second, REGISTRATION)
    await second.settle()
    if not seen:
        first.peer.abort()
        await gone(bench, first)
    assert await state(observer) == expected
    call_id = await observer.start_call("a::g", {})
    await second.answer(await second.look_for("invokefunction"), "alive")
    assert (await observer.result(call_id))["result"] == "alive"


async def test_reattach_drops_the_old_connection_without_a_close_frame(bench: Any) -> None:
    old, new, observer = await bench.worker(), await bench.worker(), await bench.worker()
    await old.send("registerfunction", id="a::f")
    await old.settle()
    pending = await observer.start_call("a::f")
    await old.expect("invokefunction")
    await new.send("reattach", previous_worker_id=old.worker_id, reattach_token=old.reattach_token)
    await new.send("registerfunction", id="a::f")
    await new.expect_silence()
    assert (await observer.result(pending))["error"]["code"] == "invocation_stopped"
    with pytest.raises(trio.BrokenResourceError):
        await old.peer.receive()
    assert old.peer.close_code is None
    assert new.worker_id != old.worker_id
    await observer.start_call("a::f")
    assert (await new.expect("invokefunction"))["function_id"] == "a::f"


@pytest.mark.parametrize(
    "claim",
    [
        "wrong-token",
        "no-token",
        "null-token",
        "empty-token",
        "unknown-id",
        "own-id",
        "in-process",
        "engine",
        "surrogate",
    ],
)
async def test_a_wrong_claim_is_ignored_in_silence(bench: Any, claim: str) -> None:
    victim, thief = await bench.worker(), await bench.worker()
    client = bench.engine.client("local")
    fields: dict[str, Any] = {"previous_worker_id": victim.worker_id}
    match claim:
        case "wrong-token":
            fields["reattach_token"] = str(uuid.uuid4())
        case "null-token":
            fields["reattach_token"] = None
        case "empty-token":
            fields["reattach_token"] = ""
        case "unknown-id":
            fields = {"previous_worker_id": str(uuid.uuid4()), "reattach_token": victim.reattach_token}
        case "own-id":
            fields = {"previous_worker_id": thief.worker_id, "reattach_token": thief.reattach_token}
        case "in-process":
            fields = {"previous_worker_id": client.worker_id, "reattach_token": ""}
        case "engine":
            fields = {"previous_worker_id": "iii-engine-functions", "reattach_token": ""}
        case "surrogate":
            fields["reattach_token"] = "\ud800"
    await thief.send("reattach", **fields)
    await thief.expect_silence()
    await victim.expect_silence()
    assert len(bench.engine.workers) == 3


async def test_a_caller_that_goes_is_not_told_to_its_callee(bench: Any) -> None:
    callee, caller, observer = await bench.worker(), await bench.worker(), await bench.worker()
    await callee.send("registerfunction", id="a::f")
    await callee.settle()
    await caller.start_call("a::f")
    call = await callee.expect("invokefunction")
    caller.peer.abort()
    await gone(bench, caller)
    await callee.expect_silence()
    assert await status(observer, callee) == "busy"
    await callee.answer(call, "for nobody")
    await callee.expect_silence()
    assert await status(observer, callee) == "available"


async def status(observer: WireWorker, worker: WireWorker) -> str:
    listed = await observer.call("engine::workers::list", {"worker_id": worker.worker_id})
    (row,) = listed["workers"]
    return str(row["status"])


async def test_states_of_a_worker(bench: Any) -> None:
    worker, observer = await bench.worker(), await bench.worker()
    assert await status(observer, worker) == "connected"
    await worker.describe(name="w")
    await worker.settle()
    assert await status(observer, worker) == "available"
    await worker.send("registerfunction", id="a::f")
    await worker.settle()
    calls = [await observer.start_call("a::f") for _ in range(2)]
    for call_id in calls:
        assert await status(observer, worker) == "busy"
        await worker.answer(await worker.expect("invokefunction"))
        await observer.result(call_id)
    assert await status(observer, worker) == "available"
    worker.peer.abort()
    await gone(bench, worker)
    assert (await observer.call("engine::workers::list", {"worker_id": worker.worker_id}))["workers"] == []


@pytest.mark.parametrize("frame", [REGISTRATION[0], REGISTRATION[1], REGISTRATION[3], REGISTRATION[5]])
async def test_the_first_registration_makes_a_worker_available(bench: Any, frame: dict[str, Any]) -> None:
    worker, observer = await bench.worker(), await bench.worker()
    await play(worker, [frame])
    await worker.settle()
    assert await status(observer, worker) == "available"


async def test_self_calls_in_flight_at_the_end(bench: Any) -> None:
    worker = await bench.worker()
    await worker.send("registerfunction", id="a::f")
    await worker.start_call("a::f")
    await worker.expect("invokefunction")
    worker.peer.abort()
    await gone(bench, worker)
    assert bench.engine.workers == ()


async def test_frames_sent_before_a_clean_close_take_effect(bench: Any) -> None:
    """A one-shot worker fires and leaves: what it sent is handled before its end."""
    receiver, oneshot = await bench.worker(), await bench.worker()
    await receiver.send("registerfunction", id="a::f")
    await receiver.settle()
    for number in range(20):
        await oneshot.send("invokefunction", function_id="a::f", data=[number], action={"type": "void"})
    await oneshot.peer.close()
    assert [(await receiver.expect("invokefunction"))["data"] for _ in range(20)] == [[n] for n in range(20)]
