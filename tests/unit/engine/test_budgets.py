"""What one worker's registrations, questions and calls may cost: the engine's memory and other workers' time."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio.testing

from iii_core.engine.answers import encode_bounded
from iii_core.engine.budget import Budget
from iii_core.engine.core import FUNCTIONS_AVAILABLE, WORKERS_AVAILABLE
from iii_core.errors import InvocationError
from iii_core.protocol.limits import EngineLimits

KIB = 1024


def used(bench: Any, worker: Any) -> int:
    size: int = bench.engine.router.workers[worker.worker_id].registered.used
    return size


async def functions(worker: Any) -> list[str]:
    listed = await worker.call("engine::functions::list", {})
    return [row["function_id"] for row in listed["functions"]]


class TestBudget:
    def test_of_all_registrations_of_a_worker_together(self) -> None:
        budget = Budget(100, "one worker")
        budget.take(60)
        assert budget.refuse(40) is None
        assert budget.refuse(41) == "the registrations of one worker may have 100 bytes together"
        budget.take(-60)
        assert budget.refuse(100) is None

    def test_within_what_workers_share(self) -> None:
        shared = Budget(100, "all")
        one, other = Budget(80, shared=shared), Budget(80, shared=shared)
        one.take(80)
        assert "of all may have 100 bytes" in (other.refuse(21) or "")
        assert other.refuse(20) is None
        one.take(-80)
        assert other.refuse(80) is None


async def test_functions_over_the_budget_are_refused_and_those_before_stay(open_bench: Any) -> None:
    async with open_bench(limits=EngineLimits(worker_registrations_bytes=30 * KIB)) as bench:
        worker, other = await bench.worker(), await bench.worker()
        for number in range(5):
            await worker.send("registerfunction", id=f"a::f{number}", metadata="x" * 10 * KIB)
        await other.send("registerfunction", id="b::f", metadata="x" * 10 * KIB)
        await other.settle()
        assert await functions(worker) == ["a::f0", "a::f1", "b::f"]
        await worker.send("unregisterfunction", id="a::f0")
        await worker.send("registerfunction", id="a::f3", metadata="x" * 10 * KIB)
        assert await functions(worker) == ["a::f1", "a::f3", "b::f"]


async def test_a_registration_that_replaces_another_counts_for_the_difference(open_bench: Any) -> None:
    async with open_bench(limits=EngineLimits(worker_registrations_bytes=30 * KIB)) as bench:
        worker = await bench.worker()
        for text in ("x", "y", "z"):
            await worker.send("registerfunction", id="a::f", metadata=text * 20 * KIB)
            await worker.send("registertriggertype", id="hook", description=text * 2 * KIB)
            await worker.send("registertrigger", id="t", trigger_type="hook", function_id="a::f", config=text * KIB)
        (row,) = (await worker.call("engine::functions::list", {}))["functions"]
        assert row["metadata"] == "z" * 20 * KIB
        assert 26 * KIB < used(bench, worker) < 27 * KIB


async def test_what_goes_in_any_way_is_off_the_budget(bench: Any) -> None:
    worker, taker = await bench.worker(), await bench.worker()
    await worker.send("registerfunction", id="a::f")
    await worker.send("registertriggertype", id="hook")
    await worker.send("registertrigger", id="t", trigger_type="hook", function_id="a::f")
    await worker.settle()
    assert used(bench, worker) > 3 * KIB
    await taker.send("registerfunction", id="a::f")
    await taker.send("registertriggertype", id="hook")
    await taker.send("registertrigger", id="t", trigger_type="hook", function_id="a::f")
    await taker.settle()
    assert used(bench, worker) == 0
    await taker.send("unregisterfunction", id="a::f")
    await taker.send("unregistertriggertype", id="hook")
    await worker.send("unregistertrigger", id="t")
    await worker.settle()
    await taker.settle()
    assert used(bench, taker) == 0


async def test_a_trigger_over_the_budget_is_refused_to_its_registrant(open_bench: Any) -> None:
    async with open_bench(limits=EngineLimits(worker_registrations_bytes=10 * KIB)) as bench:
        worker = await bench.worker()
        for name in ("t1", "t2"):
            await worker.send("registertrigger", id=name, trigger_type="hook", function_id="f", config="x" * 6 * KIB)
        refused = await worker.expect("triggerregistrationresult")
        assert (refused["id"], refused["error"]["code"]) == ("t2", "limit_exceeded")
        assert "together" in refused["error"]["message"]


async def test_triggers_without_an_owner_have_a_budget_too(open_bench: Any) -> None:
    async with open_bench(limits=EngineLimits(worker_registrations_bytes=10 * KIB)) as bench:
        worker = await bench.worker()
        given = {"trigger_type": "hook", "function_id": "f", "config": "x" * 6 * KIB}
        made = await worker.call("engine::register_trigger", given)
        assert (await worker.call_error("engine::register_trigger", given))["code"] == "limit_exceeded"
        await worker.call("engine::unregister_trigger", made)
        await worker.call("engine::register_trigger", given)


async def test_the_workers_of_one_sandbox_share_a_budget_that_others_do_not(bench: Any) -> None:
    router = bench.engine.router
    one, same, outside = router.origin("sandbox-1"), router.origin("sandbox-1"), router.origin(None)
    assert one is same
    assert one is not outside
    worker = await bench.worker()
    await worker.send("registerfunction", id="a::f")
    await worker.settle()
    assert outside.used == used(bench, worker) > 0
    assert one.used == 0
    await worker.vanish()
    assert outside.used == 0


class TestAnswers:
    def test_are_the_json_of_the_value(self) -> None:
        value = {"a": [{"b": [1, {"c": None}], "d": "ü"}, {}], "e": [], "f": {}, "g": ["x", 'y"'], "h": [[]], "i": 1.5}
        assert json.loads(bytes(encode_bounded(value, 1000))) == value

    @pytest.mark.parametrize("value", [["x" * 40], [{"a": ["x" * 10, {}]}] * 5, {"a": {"b": "x" * 40}, "c": {}}])
    def test_are_not_built_beyond_their_limit(self, value: object) -> None:
        with pytest.raises(InvocationError, match="more than 30 bytes"):
            encode_bounded(value, 30)

    async def test_too_long_ones_are_the_askers_error(self, open_bench: Any) -> None:
        async with open_bench(limits=EngineLimits(answer_bytes=20 * KIB)) as bench:
            worker = await bench.worker()
            for number in range(3):
                await worker.send("registerfunction", id=f"a::f{number}", metadata="x" * 10 * KIB)
            error = await worker.call_error("engine::functions::list", {})
            assert error["code"] == "limit_exceeded"
            listed = await worker.call("engine::functions::list", {"prefix": "a::f1"})
            assert [row["function_id"] for row in listed["functions"]] == ["a::f1"]
            await worker.settle()

    async def test_are_made_once_until_something_changes(self, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        made: list[None] = []
        before = bench.engine.router.functions.__class__.__iter__

        def count(table: Any) -> Any:
            made.append(None)
            return before(table)

        first, second = await bench.worker(), await bench.worker()
        monkeypatch.setattr(bench.engine.router.functions.__class__, "__iter__", count)
        for worker in (first, second, first):
            assert await functions(worker) == []
        assert len(made) == 1
        await first.send("registerfunction", id="a::f")
        assert await functions(first) == ["a::f"]
        await first.describe(name="named")
        listed = await first.call("engine::functions::list", {})
        assert listed["functions"][0]["worker_name"] == "named"
        await first.send("registerfunction", id="a::f", description="new")
        assert (await first.call("engine::functions::list", {}))["functions"][0]["description"] == "new"

    async def test_show_what_became_of_triggers(self, bench: Any) -> None:
        provider, owner = await bench.worker(), await bench.worker()
        await provider.send("registertriggertype", id="hook")
        await provider.settle()

        async def active() -> list[str]:
            listed = await owner.call("engine::registered-triggers::list", {})
            return [row["id"] for row in listed["registered_triggers"]]

        assert await active() == []
        await owner.send("registertrigger", id="t", trigger_type="hook", function_id="f")
        assert await active() == ["t"]
        error = {"code": "no", "message": "no"}
        await provider.send("triggerregistrationresult", id="t", trigger_type="hook", function_id="f", error=error)
        await provider.settle()
        assert await active() == []

    async def test_arguments_of_the_engines_functions_are_limited(self, open_bench: Any) -> None:
        async with open_bench(limits=EngineLimits(registration_bytes=KIB)) as bench:
            worker = await bench.worker()
            error = await worker.call_error("engine::workers::list", {"search": "x" * 2 * KIB})
            assert error["code"] == "INVALID_ARGUMENTS"


class TestSubscriptions:
    @pytest.mark.parametrize("kind", [WORKERS_AVAILABLE, FUNCTIONS_AVAILABLE])
    async def test_are_limited_for_each_worker(self, open_bench: Any, kind: str) -> None:
        async with open_bench(limits=EngineLimits(subscriptions=2)) as bench:
            worker, other = await bench.worker(), await bench.worker()
            for number in range(3):
                await worker.send("registertrigger", id=f"t{number}", trigger_type=kind, function_id="f")
            refused = await worker.expect("triggerregistrationresult")
            assert (refused["id"], refused["error"]["code"]) == ("t2", "limit_exceeded")
            await other.send("registertrigger", id="other", trigger_type=kind, function_id="f")
            await other.expect_silence()


class TestWhoPays:
    async def test_the_same_words_again_tell_a_provider_nothing(self, bench: Any) -> None:
        owner, provider = await bench.worker(), await bench.worker()
        await owner.send("registertrigger", id="t", trigger_type="hook", function_id="f")
        await owner.settle()
        for _ in range(3):
            await provider.send("registertriggertype", id="hook", description="d", call_request_format={"a": 1})
        await provider.expect("registertrigger")
        await provider.expect_silence()

    async def test_who_takes_anothers_trigger_back_pays_for_it(self, open_bench: Any) -> None:
        limits = EngineLimits(stall_timeout=60)
        async with open_bench(limits=limits, buffer=10) as bench:
            owner, provider, other = [await bench.worker() for _ in range(3)]
            await provider.send("registertriggertype", id="hook")
            await owner.send("registertrigger", id="t", trigger_type="hook", function_id="f")
            await owner.settle()
            owed = bench.engine.router.workers[owner.worker_id].credit.owed
            await other.send("unregistertrigger", id="t")
            await other.settle()
            assert bench.engine.router.workers[owner.worker_id].credit.owed == owed
            assert bench.engine.router.workers[other.worker_id].credit.owed[0] == 1

    async def test_a_slow_provider_inside_the_engine_holds_back_who_registers(self, open_bench: Any) -> None:
        async with open_bench(limits=EngineLimits(credit_messages=10), buffer=KIB) as bench:
            release = trio.Event()

            class Slow:
                async def register(self, binding: Any) -> None:
                    await release.wait()

                async def unregister(self, binding: Any) -> None:
                    pass

            client = bench.engine.client("slow")
            client.register_trigger_type("slow", Slow())
            worker = await bench.worker()
            async with trio.open_nursery() as nursery:

                async def register() -> None:
                    for number in range(200):
                        await worker.send("registertrigger", id=f"t{number}", trigger_type="slow", function_id="f")

                nursery.start_soon(register)
                await trio.testing.wait_all_tasks_blocked()
                endpoint = bench.engine.router.workers[worker.worker_id]
                assert 10 < len(endpoint.triggers) < 20
                release.set()
            await worker.settle()
            await trio.testing.wait_all_tasks_blocked()
            assert len(endpoint.triggers) == 200
            assert endpoint.credit.owed == (0, 0)


class TestCalls:
    @pytest.mark.parametrize("fields", [{"invocation_id": "i" * 1025}, {"function_id": "f" * 1025}])
    async def test_ids_that_are_too_long_are_refused(self, bench: Any, fields: dict[str, str]) -> None:
        callee, caller = await bench.worker(), await bench.worker()
        await callee.send("registerfunction", id="a::f")
        await callee.settle()
        await caller.send("invokefunction", **({"invocation_id": "1", "function_id": "a::f"} | fields))
        refused = await caller.expect("invocationresult")
        assert refused["error"] == {"code": "limit_exceeded", "message": "an id may have 1024 bytes"}
        assert refused["invocation_id"] == fields.get("invocation_id", "1")
        await callee.expect_silence()

    async def test_trace_context_is_passed_on_as_long_as_the_standard_has_it(self, bench: Any) -> None:
        callee, caller = await bench.worker(), await bench.worker()
        await callee.send("registerfunction", id="a::f")
        await callee.settle()
        trace = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "baggage": "k=" + "v" * 8190}
        await caller.start_call("a::f", **trace)
        call = await callee.expect("invokefunction")
        assert {key: call.get(key) for key in trace} == trace
        await caller.start_call("a::f", **{key: value + "x" for key, value in trace.items()})
        assert not trace.keys() & (await callee.expect("invokefunction")).keys()

    async def test_nothing_is_kept_of_a_call_without_an_answer(self, bench: Any) -> None:
        callee, caller = await bench.worker(), await bench.worker()
        await callee.send("registerfunction", id="a::f")
        await callee.settle()
        void = {"action": {"type": "void"}, "traceparent": "t" * 55, "baggage": "b" * 8000}
        await caller.start_call("a::f", "x" * 1000, **void)
        await callee.expect("invokefunction")
        (invocation,) = bench.engine.router.workers[callee.worker_id].executing.values()
        request = invocation.request
        assert (request.invocation_id, request.traceparent, request.baggage) == (None, None, None)
        assert bytes(request.data) == b""
        assert bench.engine.router.workers[caller.worker_id].held_bytes == 0

    async def test_what_is_kept_for_answers_is_limited(self, open_bench: Any) -> None:
        async with open_bench(limits=EngineLimits(held_bytes=10 * KIB)) as bench:
            callee, caller = await bench.worker(), await bench.worker()
            await callee.send("registerfunction", id="a::f")
            await callee.settle()
            calls = [await caller.start_call("a::f", baggage="b" * 6 * KIB) for _ in range(3)]
            assert (await caller.result(calls[2]))["error"]["code"] == "limit_exceeded"
            await callee.answer(await callee.expect("invokefunction"))
            await caller.result(calls[0])
            await caller.start_call("a::f", baggage="b" * KIB)
            for _ in range(2):
                await callee.answer(await callee.expect("invokefunction"))
            await callee.settle()
            assert bench.engine.router.workers[caller.worker_id].held_bytes == 0


class TestTime:
    @pytest.fixture
    def anyio_backend(self) -> tuple[str, dict[str, Any]]:
        return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0.005)}

    async def test_a_provider_that_takes_a_type_over_and_over_pays_for_it(self, open_bench: Any) -> None:
        """The owner of the trigger does nothing and must not be held back."""
        limits = EngineLimits(credit_messages=20, stall_timeout=60)
        async with open_bench(limits=limits, buffer=KIB) as bench, trio.open_nursery() as nursery:
            owner, provider = await bench.worker(), await bench.worker()
            await owner.send("registertrigger", id="t", trigger_type="hook", function_id="f", config="x" * KIB)
            await owner.settle()

            async def register() -> None:
                for number in range(200):
                    await provider.send("registertriggertype", id="hook", description=str(number))

            nursery.start_soon(register)
            await trio.sleep(10)  # each time it has a moment before it is handed the trigger
            workers = bench.engine.router.workers
            assert workers[owner.worker_id].credit.owed == (0, 0)
            assert workers[provider.worker_id].credit.owed[0] >= limits.credit_messages
            assert nursery.child_tasks  # and so its messages are not read
            await owner.settle()
            nursery.cancel_scope.cancel()

    async def test_a_subscriber_that_reads_nothing_pays_for_events_and_is_told_later(self, open_bench: Any) -> None:
        limits = EngineLimits(credit_bytes=10 * KIB, stall_timeout=60)
        async with open_bench(limits=limits, buffer=KIB) as bench:
            lazy, worker = await bench.worker(), await bench.worker()
            await lazy.send("registerfunction", id="lazy::f", metadata="x" * 4 * KIB)
            await lazy.send("registertrigger", id="t", trigger_type=FUNCTIONS_AVAILABLE, function_id="lazy::f")
            await lazy.settle()
            for number in range(20):
                await worker.send("registerfunction", id=f"a::f{number:02}")
                await trio.sleep(0.2)
            owed = bench.engine.router.workers[lazy.worker_id].credit.owed
            assert 10 * KIB < owed[1] < 20 * KIB
            told = 0
            while True:
                call = await lazy.expect("invokefunction")
                told += 1
                if any(row["function_id"] == "a::f19" for row in call["data"]["functions"]):
                    break
            assert told < 6

    async def test_too_long_an_event_is_not_sent(self, open_bench: Any) -> None:
        async with open_bench(limits=EngineLimits(answer_bytes=10 * KIB)) as bench:
            worker = await bench.worker()
            await worker.send("registertrigger", id="t", trigger_type=FUNCTIONS_AVAILABLE, function_id="a::f")
            await worker.send("registerfunction", id="a::f", metadata="x" * 20 * KIB)
            await trio.sleep(1)
            await worker.expect_silence()
            await worker.send("unregisterfunction", id="a::f")
            await worker.send("registerfunction", id="a::f")
            assert (await worker.expect("invokefunction"))["data"]["event"] == "functions_changed"

    async def test_a_long_message_is_followed_by_a_rest(self, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("iii_core.engine.session.LONG_STEP", 0.0)
        monkeypatch.setattr("iii_core.engine.session.REST", 1e12)
        monkeypatch.setattr("iii_core.engine.session.LONGEST_REST", 3.0)
        busy, other = await bench.worker(), await bench.worker()
        start = trio.current_time()
        await busy.send("ping")
        await busy.send("ping")
        await busy.expect("pong")
        await other.settle()
        assert trio.current_time() == start, "nobody else rests"
        await busy.expect("pong")
        assert trio.current_time() == start + 3.0
