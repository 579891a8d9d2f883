"""A worker that stops reading slows nobody but itself (design §4), and what a worker may have in flight is capped."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio.testing

from iii_core.protocol.limits import EngineLimits

KIB = 1024


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Everything here is in memory, so time may jump: what takes how long says nothing of the machine."""
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0.005)}


async def provide(worker: Any, function_id: str) -> None:
    await worker.send("registerfunction", id=function_id)
    await worker.settle()


def void(function_id: str, size: int = 1000) -> str:
    return json.dumps({"type": "invokefunction", "function_id": function_id, "data": "x" * size})


async def echo(worker: Any, *, task_status: trio.TaskStatus[None]) -> None:
    task_status.started()
    while True:
        call = await worker.look_for("invokefunction")
        await worker.answer(call, call["data"])


async def test_a_callee_that_never_reads_slows_no_other_call(open_bench: Any) -> None:
    """Its buffers are full many times over; another caller's calls to it fail at worst, and all others work."""
    limits = EngineLimits(queue_messages=200, stall_timeout=60)
    async with open_bench(limits=limits, buffer=4 * KIB) as bench, trio.open_nursery() as nursery:
        stuck, flooder, callee, caller = [await bench.worker() for _ in range(4)]
        await provide(stuck, "stuck::f")
        await provide(callee, "good::f")
        await nursery.start(echo, callee)
        for _ in range(500):
            await flooder.send_text(void("stuck::f"))
        for number in range(50):
            with trio.fail_after(5):
                assert await caller.call("good::f", [number]) == [number]
                assert await flooder.call("good::f", [number]) == [number]
        error = await caller.call_error("stuck::f")
        assert error["code"] == "channel_send_failed"
        assert "does not keep up" in error["message"]
        assert len(bench.engine.workers) == 4
        nursery.cancel_scope.cancel()


async def test_a_caller_out_of_credit_is_read_no_further_and_others_are(open_bench: Any) -> None:
    limits = EngineLimits(credit_messages=10, stall_timeout=60)
    async with open_bench(limits=limits, buffer=4 * KIB) as bench, trio.open_nursery() as nursery:
        stuck, greedy, callee, caller = [await bench.worker() for _ in range(4)]
        await provide(stuck, "stuck::f")
        await provide(callee, "good::f")
        await nursery.start(echo, callee)
        sent = 0

        async def flood() -> None:
            nonlocal sent
            for _ in range(1000):
                await greedy.send_text(void("stuck::f"))
                sent += 1

        nursery.start_soon(flood)
        await trio.testing.wait_all_tasks_blocked()
        assert 10 < sent < 40, "credit, and what fits into the connection's buffers"
        with trio.fail_after(5):
            assert await caller.call("good::f", 1) == 1
            assert await caller.start_call("stuck::f")
            await caller.settle()
        for _ in range(1000):  # the stuck worker reads at last: everything comes, in order, and the flooder goes on
            assert (await stuck.look_for("invokefunction"))["data"] in ("x" * 1000, None)
        await trio.testing.wait_all_tasks_blocked()
        assert sent == 1000
        nursery.cancel_scope.cancel()


async def test_credit_in_bytes_lets_one_big_message_overshoot(open_bench: Any) -> None:
    limits = EngineLimits(credit_bytes=100 * KIB, stall_timeout=60)
    async with open_bench(limits=limits, buffer=4 * KIB) as bench, trio.open_nursery() as nursery:
        stuck, caller = await bench.worker(), await bench.worker()
        await provide(stuck, "stuck::f")
        await caller.send_text(void("stuck::f"))
        await caller.send_text(void("stuck::f", 500 * KIB))
        sent = trio.Event()

        async def more() -> None:
            for _ in range(10):
                await caller.send_text(void("stuck::f"))
            sent.set()

        nursery.start_soon(more)
        await trio.testing.wait_all_tasks_blocked()
        assert not sent.is_set()
        sizes = [len((await stuck.look_for("invokefunction"))["data"]) for _ in range(12)]
        assert sizes == [1000, 500 * KIB, *[1000] * 10]
        await sent.wait()


async def test_a_caller_that_reads_no_results_is_stopped_by_its_own_credit(open_bench: Any) -> None:
    limits = EngineLimits(credit_messages=20, stall_timeout=60)
    async with open_bench(limits=limits, buffer=4 * KIB) as bench, trio.open_nursery() as nursery:
        callee, lazy, caller = [await bench.worker() for _ in range(3)]
        await provide(callee, "good::f")
        await nursery.start(echo, callee)
        sent = 0

        async def ask() -> None:
            nonlocal sent
            for _ in range(500):
                await lazy.start_call("good::f", "x" * 1000)
                sent += 1

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        assert sent < 60
        with trio.fail_after(5):
            assert await caller.call("good::f", 1) == 1
        for _ in range(500):
            await lazy.look_for("invocationresult")
        assert sent == 500
        nursery.cancel_scope.cancel()


async def test_replies_of_a_paused_worker_are_not_needed_by_itself(open_bench: Any) -> None:
    """Credit is given back when a message leaves its queue, not when it is answered: mutual calls cannot lock."""
    limits = EngineLimits(credit_messages=2, stall_timeout=60)
    async with open_bench(limits=limits) as bench, trio.open_nursery() as nursery:
        left, right = await bench.worker(), await bench.worker()
        await provide(left, "l::f")
        await provide(right, "r::f")

        async def serve(worker: Any, other: str, nested: bool) -> None:
            waiting: dict[str, Any] = {}
            while True:
                frame = await worker.receive()
                if frame["type"] == "invokefunction" and nested:
                    waiting[await worker.start_call(other)] = frame
                elif frame["type"] == "invokefunction":
                    await worker.answer(frame, 1)
                else:
                    await worker.answer(waiting.pop(frame["invocation_id"]), frame["result"])

        caller = await bench.worker()
        nursery.start_soon(serve, left, "r::f", True)
        nursery.start_soon(serve, right, "l::f", False)
        calls = [await caller.start_call("l::f") for _ in range(100)]
        with trio.fail_after(5):
            for call_id in calls:
                assert (await caller.result(call_id))["result"] == 1
        nursery.cancel_scope.cancel()


async def test_a_worker_that_takes_nothing_is_dropped(open_bench: Any) -> None:
    limits = EngineLimits(stall_timeout=0.2)
    async with open_bench(limits=limits, buffer=4 * KIB) as bench:
        stuck, caller = await bench.worker(), await bench.worker()
        await provide(stuck, "stuck::f")
        calls = [await caller.start_call("stuck::f", "x" * 1000) for _ in range(10)]
        with trio.fail_after(5):
            for call_id in calls:
                assert (await caller.result(call_id))["error"]["code"] == "invocation_stopped"
        assert [worker.id for worker in bench.engine.workers] == [caller.worker_id]
        assert stuck.peer.aborted
        assert stuck.peer.close_code is None


async def test_a_worker_that_reads_slowly_is_kept(open_bench: Any) -> None:
    limits = EngineLimits(stall_timeout=0.5)
    async with open_bench(limits=limits, buffer=4 * KIB) as bench:
        slow, caller = await bench.worker(), await bench.worker()
        await provide(slow, "slow::f")
        for _ in range(20):
            await caller.send_text(void("slow::f", 3 * KIB))
        for _ in range(20):
            await trio.sleep(0.06)
            await slow.expect("invokefunction")
        await slow.expect_silence()


async def test_a_full_queue_of_messages_that_must_arrive_drops_the_worker(open_bench: Any) -> None:
    """Results cannot fail back to anybody: the worker that asked for them and does not take them goes."""
    limits = EngineLimits(queue_bytes=20 * KIB, stall_timeout=60)
    async with open_bench(limits=limits, buffer=4 * KIB) as bench:
        callee, lazy = await bench.worker(), await bench.worker()
        await provide(callee, "good::f")
        for _ in range(10):
            await lazy.start_call("good::f")
        for _ in range(10):
            await callee.answer(await callee.look_for("invokefunction"), "x" * 5 * KIB)
        await callee.settle()
        assert [worker.id for worker in bench.engine.workers] == [callee.worker_id]
        assert lazy.peer.aborted


async def test_calls_in_flight_are_capped(open_bench: Any) -> None:
    async with open_bench(limits=EngineLimits(calls_in_flight=3)) as bench:
        callee, caller, other = [await bench.worker() for _ in range(3)]
        await provide(callee, "a::f")
        calls = [await caller.start_call("a::f") for _ in range(3)]
        error = await caller.call_error("a::f")
        assert error["code"] == "limit_exceeded"
        for _ in range(5):
            await caller.send_text(void("a::f"))
        await caller.settle()
        await other.start_call("a::f")
        received = [await callee.expect("invokefunction") for _ in range(9)]
        await callee.expect_silence()
        await callee.answer(received[0], 1)
        assert (await caller.result(calls[0]))["result"] == 1
        await caller.start_call("a::f")
        await callee.expect("invokefunction")


async def test_calls_that_a_worker_never_answers_are_capped(open_bench: Any) -> None:
    async with open_bench(limits=EngineLimits(calls_executing=3)) as bench:
        silent, good, caller = [await bench.worker() for _ in range(3)]
        await provide(silent, "silent::f")
        await provide(good, "good::f")
        for _ in range(10):
            await caller.send_text(void("silent::f"))
        assert (await caller.call_error("silent::f"))["code"] == "limit_exceeded"
        received = [await silent.expect("invokefunction") for _ in range(3)]
        await silent.expect_silence()
        call_id = await caller.start_call("good::f")
        await good.answer(await good.expect("invokefunction"))
        await caller.result(call_id)
        await silent.answer(received[0])
        await silent.settle()
        await caller.start_call("silent::f")
        await silent.expect("invokefunction")


async def test_the_engine_keeps_no_payload_of_a_call_on_its_way(bench: Any) -> None:
    callee, caller = await bench.worker(), await bench.worker()
    await provide(callee, "a::f")
    await caller.start_call("a::f", "x" * 1000, metadata="y" * 1000)
    assert (await callee.expect("invokefunction"))["metadata"] == "y" * 1000
    (invocation,) = bench.engine.router.workers[callee.worker_id].executing.values()
    assert bytes(invocation.request.data) == bytes(invocation.request.metadata) == b""


async def test_bytes_held_by_in_process_handlers_are_capped(open_bench: Any) -> None:
    async with open_bench(limits=EngineLimits(held_bytes=10 * KIB)) as bench:
        release = trio.Event()

        async def hold(call: Any) -> None:
            await release.wait()

        bench.engine.client("holder").register_function("hold::f", hold)
        caller = await bench.worker()
        calls = [await caller.start_call("hold::f", "x" * 6 * KIB) for _ in range(2)]
        assert (await caller.result(calls[1]))["error"]["code"] == "channel_send_failed"
        release.set()
        assert "error" not in await caller.result(calls[0])
        assert await caller.call("hold::f", "x" * 50 * KIB) is None, "one of any size"


async def test_everything_is_off_credit_in_the_end(bench: Any) -> None:
    callee, caller, gone = [await bench.worker() for _ in range(3)]
    await provide(callee, "a::f")
    for worker in (caller, gone):
        for _ in range(20):
            await worker.start_call("a::f", "x" * 1000)
        await worker.settle()
    await gone.vanish()
    for _ in range(40):
        await callee.answer(await callee.look_for("invokefunction"), "y")
    for _ in range(20):
        await caller.look_for("invocationresult")
    await trio.testing.wait_all_tasks_blocked()
    for worker in bench.engine.router.workers.values():
        assert worker.credit.owed == (0, 0)
        assert worker.held_bytes == 0
        assert not worker.calls
        assert not worker.executing


@pytest.mark.parametrize("position", [0, 1])
async def test_a_stalled_subscriber_delays_no_event_for_others(open_bench: Any, position: int) -> None:
    async with open_bench(limits=EngineLimits(stall_timeout=60, queue_messages=50), buffer=KIB) as bench:
        subscribers = [await bench.worker() for _ in range(2)]
        for number, worker in enumerate(subscribers):
            await provide(worker, f"on::{number}")
            await worker.send(
                "registertrigger",
                id=f"t{number}",
                trigger_type="engine::workers-available",
                function_id=f"on::{number}",
            )
            await worker.settle()
        reader = subscribers[position]
        for _ in range(100):
            passing = await bench.worker()
            call = await reader.look_for("invokefunction")
            assert call["data"] == {"event": "worker_connected", "worker_id": passing.worker_id}
            await passing.vanish()
            assert (await reader.look_for("invokefunction"))["data"]["event"] == "worker_disconnected"
