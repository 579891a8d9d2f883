"""The engine's tables one by one: what a whole engine would hide behind its other rules."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from iii_core.engine.credit import Credit
from iii_core.engine.endpoint import Endpoint, WorkerRecord
from iii_core.engine.functions import FunctionTable
from iii_core.engine.invocations import Invocation
from iii_core.engine.outbox import BATCH_BYTES, Outbox
from iii_core.engine.router import Router, Topology
from iii_core.engine.triggers import TriggerTable
from iii_core.protocol import messages as m
from iii_core.protocol.limits import EngineLimits
from iii_core.testing.memory_transport import MemoryPeer

LIMITS = EngineLimits(queue_messages=3, queue_bytes=100)


class Recorder(Endpoint):
    """A worker that keeps what it is sent."""

    def __init__(self, name: str) -> None:
        super().__init__(WorkerRecord(id=name, connected_at_ms=0), EngineLimits())
        self.sent: list[m.ToWorker] = []

    def send(self, message: m.ToWorker, payer: Endpoint | None) -> None:
        self.sent.append(message)

    def deliver(self, message: m.InvokeFunction, invocation: Invocation) -> str | None:
        self.sent.append(message)
        return None

    def drop(self, reason: str) -> None:
        pass


class Watcher(Topology):
    def __init__(self) -> None:
        self.events: list[str] = []

    def worker_event(self, event: str, worker: Endpoint) -> None:
        self.events.append(f"{event} {worker.id}")


class TestOutbox:
    def test_a_message_of_any_size_fits_an_empty_queue(self) -> None:
        outbox = Outbox(LIMITS)
        assert outbox.has_room(1000)
        outbox.put(bytes(1000), None)
        assert not outbox.has_room(1)

    def test_messages_and_bytes_are_both_limits(self) -> None:
        outbox = Outbox(LIMITS)
        outbox.put(bytes(60), None)
        assert outbox.has_room(40)
        assert not outbox.has_room(41)
        outbox.put(b"", None)
        outbox.put(b"", None)
        assert not outbox.has_room(0)

    async def test_what_was_taken_makes_room(self) -> None:
        outbox = Outbox(LIMITS)
        outbox.put(bytes(100), None)
        assert [len(entry.frame) for entry in await outbox.take()] == [100]
        outbox.put(bytes(60), None)
        assert outbox.has_room(40)

    async def test_a_batch_is_bounded_and_never_empty(self) -> None:
        outbox = Outbox(EngineLimits())
        for size in (BATCH_BYTES + 1, BATCH_BYTES - 1, 1, 1):
            outbox.put(bytes(size), None)
        sizes = [[len(entry.frame) for entry in await outbox.take()] for _ in range(3)]
        assert sizes == [[BATCH_BYTES + 1], [BATCH_BYTES - 1, 1], [1]]

    async def test_credit_is_owed_until_a_batch_is_settled(self) -> None:
        outbox, credit = Outbox(LIMITS), Credit(LIMITS)
        outbox.put(bytes(10), credit)
        batch = await outbox.take()
        assert credit.owed == (1, 10)
        outbox.settle(batch)
        assert credit.owed == (0, 0)

    async def test_the_end_settles_what_waits_and_keeps_nothing(self) -> None:
        outbox, credit = Outbox(LIMITS), Credit(LIMITS)
        outbox.put(bytes(10), credit)
        outbox.close()
        outbox.put(bytes(10), credit)
        assert credit.owed == (0, 0)
        with trio.move_on_after(0.02) as scope:
            await outbox.take()
        assert scope.cancelled_caught


class TestCredit:
    async def test_who_had_to_wait_wakes_once_half_of_it_is_back(self) -> None:
        """Waking for every message that leaves would let the reader stop again after one."""
        credit = Credit(EngineLimits(credit_messages=10))
        for _ in range(11):
            credit.take(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(credit.restored)
            await trio.testing.wait_all_tasks_blocked()
            for left in range(10, 5, -1):
                credit.give(1)
                await trio.testing.wait_all_tasks_blocked()
                assert len(nursery.child_tasks) == 1, f"{left} messages still wait"
            credit.give(1)
        assert credit.owed == (5, 5)

    async def test_who_is_within_it_waits_for_nothing(self) -> None:
        credit = Credit(EngineLimits(credit_messages=10))
        for _ in range(10):
            credit.take(1)
        with trio.fail_after(20):
            await credit.restored()


def test_a_worker_leaves_once() -> None:
    watcher = Watcher()
    router, worker = Router(EngineLimits(), watcher), Recorder("w")
    router.attach(worker)
    for _ in range(2):
        router.detach(worker)
    assert watcher.events == ["worker_connected w", "worker_disconnected w"]


def test_a_function_that_gets_another_id_is_gone_under_its_old_one() -> None:
    """A rule of the listener may rename what a worker registers again under its own name for it."""
    changes: list[None] = []
    table, owner = FunctionTable(lambda: changes.append(None)), Recorder("w")
    table.add(owner, m.RegisterFunction(id="old::f"), "f")
    table.add(owner, m.RegisterFunction(id="new::f"), "f")
    assert [function.id for function in table] == ["new::f"]
    assert owner.functions == {"f": "new::f"}
    assert table.remove(owner, "f")
    assert list(table) == []
    assert len(changes) == 4


def bound(table: TriggerTable, provider: Recorder, owner: Endpoint | None, outcomes: list[Any]) -> None:
    table.add_type(provider, m.RegisterTriggerType(id="type"))
    message = m.RegisterTrigger(id="t", trigger_type="type", function_id="f")
    table.add(owner, message, outcomes.append)


def test_the_outcome_of_a_trigger_is_told_once() -> None:
    table, provider = TriggerTable(), Recorder("provider")
    outcomes: list[Any] = []
    bound(table, provider, None, outcomes)
    answer = m.TriggerRegistrationResult(id="t", trigger_type="type", function_id="f")
    table.result(provider, answer)
    table.result(provider, answer)
    assert outcomes == [None]


def test_triggers_that_are_gone_leave_nothing_behind() -> None:
    """A type is any text that a worker chooses: an entry for each that there ever was would grow for ever."""
    table, owner = TriggerTable(), Recorder("w")
    for number in range(10):
        table.add(owner, m.RegisterTrigger(id=f"t{number}", trigger_type=f"type{number}", function_id="f"))
    for number in range(10):
        assert table.remove(f"t{number}", owner)
    assert not any(value for value in vars(table).values() if isinstance(value, dict))
    assert owner.registered.used == 0
    assert not owner.triggers


async def test_a_call_forgets_a_caller_that_left(bench: Any) -> None:
    callee, caller = await bench.worker(), await bench.worker()
    await callee.send("registerfunction", id="a::f")
    await callee.settle()
    await caller.start_call("a::f")
    await callee.expect("invokefunction")
    (invocation,) = bench.engine.router.workers[callee.worker_id].executing.values()
    assert invocation.caller is not None
    await caller.vanish()
    assert invocation.caller is None


async def test_a_function_that_its_worker_serves_after_all_is_not_unserved(bench: Any) -> None:
    worker = await bench.worker()
    await worker.send("registerfunction", id="a::f", invocation={"url": "http://127.0.0.1:9/"})
    await worker.settle()
    assert bench.engine.router.workers[worker.worker_id].unserved == {"a::f"}
    await worker.send("registerfunction", id="a::f")
    await worker.settle()
    assert bench.engine.router.workers[worker.worker_id].unserved == set()


async def test_where_progress_cannot_be_told_a_long_message_gets_time_for_its_size(
    open_bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryPeer, "progress", None)
    limits = EngineLimits(stall_timeout=0.2, stall_rate=100_000)
    async with open_bench(limits=limits, buffer=1024) as bench:
        slow, caller = await bench.worker(), await bench.worker()
        await slow.send("registerfunction", id="slow::f")
        await slow.settle()
        start = trio.current_time()
        for _ in range(2):  # the first fills the connection, the second waits to be taken
            await caller.send("invokefunction", function_id="slow::f", data="x" * 60_000)
        async for workers in bench.engine.worker_changes():
            if len(workers) == 1:
                break
        assert trio.current_time() - start >= 0.2 + 0.6
        assert slow.peer.aborted
