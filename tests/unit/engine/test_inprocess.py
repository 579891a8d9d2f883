"""Workers inside the engine: the same rules as for connected ones, without a socket."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from iii_core.engine import Call, TriggerBinding, TriggerProvider, open_engine
from iii_core.errors import EngineError, IIIError, InvocationError, UsageError


async def echo(call: Call) -> Any:
    return {"data": call.json(), "caller": call.caller_worker_id, "metadata": call.metadata and bytes(call.metadata)}


async def test_calls_between_in_process_and_connected_workers(bench: Any) -> None:
    client = bench.engine.client("local")
    worker = await bench.worker()
    client.register_function("local::f", echo, description="d", request_format={"type": "object"}, metadata={"k": 1})
    assert await worker.call("local::f", {"a": 1}, metadata=[1]) == {
        "data": {"a": 1, "_caller_worker_id": worker.worker_id},
        "caller": worker.worker_id,
        "metadata": "WzFd",
    }
    await worker.send("registerfunction", id="remote::f")
    await worker.settle()
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            call = await worker.expect("invokefunction")
            assert call["data"] == {"a": 1}, "what the engine's own workers send arrives as it is"
            assert call["traceparent"] == "t"
            await worker.answer(call, [2])

        nursery.start_soon(serve)
        assert await client.trigger("remote::f", {"a": 1}, timeout=5, traceparent="t") == [2]


async def test_payloads_results_and_metadata(bench: Any) -> None:
    client = bench.engine.client("local")

    async def same(call: Call) -> Any:
        return call.data

    async def nothing(call: Call) -> None:
        assert call.metadata is None

    client.register_function("same", same)
    client.register_function("nothing", nothing)
    for value in (None, 0, "é", [1, None], {"a": {"b": None}}, msgspec.Raw(b'{"raw": 1.50}')):
        expected = msgspec.json.decode(value) if isinstance(value, msgspec.Raw) else value
        assert await client.trigger("same", value) == expected
    assert bytes(await client.trigger_raw("same", msgspec.Raw(b"1.50"))) == b"1.50"
    assert await client.trigger_raw("nothing", None, metadata=None) is None
    for bad in (object(), {"x": object()}, b"\xff".decode("utf-8", "surrogateescape")):
        with pytest.raises(UsageError, match="JSON"):
            await client.trigger("same", bad)
        with pytest.raises(UsageError, match="JSON"):
            client.fire("same", bad)


async def test_faults_of_a_handler_are_its_callers_answer(bench: Any, caplog: pytest.LogCaptureFixture) -> None:
    client = bench.engine.client("local")
    worker = await bench.worker()

    def failing(error: Exception) -> Any:
        async def handler(call: Call) -> None:
            raise error

        return handler

    async def unserialisable(call: Call) -> object:
        return {"x": object()}

    async def group(call: Call) -> None:
        async with trio.open_nursery():
            raise ValueError("inside")

    class Wanted(msgspec.Struct):
        number: int

    async def typed(call: Call) -> int:
        wanted: Wanted = call.json(Wanted)
        return wanted.number

    cases: list[tuple[Any, str, str]] = [
        (failing(ValueError("boom")), "invocation_failed", "boom"),
        (failing(ValueError()), "invocation_failed", "ValueError"),
        (failing(IIIError("no disk", hint="buy one")), "invocation_failed", "no disk"),
        (failing(InvocationError("S404", "no such thing")), "S404", "no such thing"),
        (failing(RecursionError("deep")), "invocation_failed", "deep"),
        (unserialisable, "serialization_error", "not JSON"),
        (group, "invocation_failed", "exception"),
        (typed, "deserialization_error", "number"),
    ]
    for number, (handler, code, text) in enumerate(cases):
        client.register_function(f"f::{number}", handler)
        error = await worker.call_error(f"f::{number}", {"number": "x"})
        assert error["code"] == code
        assert text in error["message"]
        assert "stacktrace" not in error
        with pytest.raises(InvocationError) as caught:
            await client.trigger(f"f::{number}", {"number": "x"})
        assert caught.value.code == code
    client.register_function("fine", echo)
    assert (await worker.call("fine", 1))["data"] == 1


async def test_a_timeout_stops_the_waiting_alone(bench: Any) -> None:
    client = bench.engine.client("local")
    release, ended = trio.Event(), trio.Event()

    async def slow(call: Call) -> str:
        await release.wait()
        ended.set()
        return "late"

    client.register_function("slow", slow)
    with pytest.raises(InvocationError, match=r"no answer within 0\.01 s") as caught:
        await client.trigger("slow", timeout=0.01)
    assert caught.value.code == "TIMEOUT"
    with trio.move_on_after(0.01) as scope:
        await client.trigger("slow")
    assert scope.cancelled_caught
    release.set()
    await ended.wait()
    await trio.testing.wait_all_tasks_blocked()
    assert await client.trigger("slow", timeout=math.inf) == "late"


async def test_fire_wants_no_answer(bench: Any, caplog: pytest.LogCaptureFixture) -> None:
    client = bench.engine.client("local")
    worker = await bench.worker()
    await worker.send("registerfunction", id="a::f")
    await worker.settle()
    client.fire("a::f", {"n": 1}, metadata={"m": 2})
    call = await worker.expect("invokefunction")
    assert (call["data"], call["metadata"]) == ({"n": 1}, {"m": 2})
    client.fire("no::such")
    assert "function_not_found" in caplog.text


async def test_enqueue(bench: Any) -> None:
    client = bench.engine.client("local")
    with pytest.raises(InvocationError) as caught:
        await client.enqueue("mail", "a::f", 1)
    assert caught.value.code == "enqueue_error"
    client.register_function("engine::queue::enqueue", echo)
    assert (await client.enqueue("mail", "a::f", 1)).keys() == {"messageReceiptId"}


async def test_closing_ends_handlers_and_tells_callers(bench: Any) -> None:
    client = bench.engine.client("local")
    other = bench.engine.client("other")
    worker = await bench.worker()
    cancelled = trio.Event()

    async def forever(call: Call) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    client.register_function("forever", forever)
    call_id = await worker.start_call("forever")
    await worker.settle()
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(InvocationError) as caught:
                await other.trigger("forever")
            assert caught.value.code == "invocation_stopped"

        async def wait_on_the_closed() -> None:
            with pytest.raises(InvocationError) as caught:
                await client.trigger("forever")
            assert caught.value.code == "invocation_stopped"

        nursery.start_soon(wait)
        nursery.start_soon(wait_on_the_closed)
        await trio.testing.wait_all_tasks_blocked()
        client.close()
        client.close()
    assert (await worker.result(call_id))["error"]["code"] == "invocation_stopped"
    await cancelled.wait()
    assert (await worker.call_error("forever"))["code"] == "function_not_found"
    operations: list[Callable[[], object]] = [
        lambda: client.fire("x"),
        lambda: client.register_function("x", forever),
        lambda: client.register_trigger("x", "y"),
        lambda: client.register_trigger_type("x", Provider()),
    ]
    for operation in operations:
        with pytest.raises(EngineError, match="left the engine"):
            operation()
    with pytest.raises(EngineError):
        await client.trigger("x")


class Provider(TriggerProvider):
    """Remembers what it is told; refuses topics called bad."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str]] = []
        self.bound: dict[str, TriggerBinding] = {}

    async def register(self, binding: TriggerBinding) -> None:
        await trio.lowlevel.checkpoint()
        if binding.json().get("topic") == "bad":
            raise ValueError("bad topic")
        self.log.append(("register", binding.id))
        self.bound[binding.id] = binding

    async def unregister(self, binding: TriggerBinding) -> None:
        await trio.lowlevel.checkpoint()
        self.log.append(("unregister", binding.id))
        del self.bound[binding.id]
        if binding.json().get("topic") == "stuck":
            raise ValueError("cannot let go")


async def test_an_in_process_provider(bench: Any, caplog: pytest.LogCaptureFixture) -> None:
    client = bench.engine.client("topics")
    worker = await bench.worker()
    provider = Provider()
    await worker.send("registerfunction", id="a::f")
    await worker.send("registertrigger", id="early", trigger_type="topic", function_id="a::f", metadata={"m": 1})
    await worker.settle()
    client.register_trigger_type("topic", provider, description="d", trigger_request_format={"type": "object"})
    for trigger_id, topic in (("t1", "good"), ("t2", "bad"), ("t3", "stuck")):
        await worker.send(
            "registertrigger", id=trigger_id, trigger_type="topic", function_id="a::f", config={"topic": topic}
        )
    refusal = await worker.look_for("triggerregistrationresult")
    assert refusal["id"] == "t2"
    assert refusal["error"] == {"code": "trigger_registration_failed", "message": "bad topic"}
    assert provider.bound.keys() == {"early", "t1", "t3"}
    assert provider.bound["t1"].metadata is None
    binding = provider.bound["early"]
    client.fire(binding.function_id, {"event": 1}, metadata=binding.metadata)
    call = await worker.look_for("invokefunction")
    assert (call["data"], call["metadata"]) == ({"event": 1}, {"m": 1})
    for trigger_id in ("t3", "t2"):
        await worker.send("unregistertrigger", id=trigger_id)
    await worker.vanish()
    assert not provider.bound
    assert "cannot let go" in caplog.text
    assert [entry for entry in provider.log if entry[1] == "t1"] == [("register", "t1"), ("unregister", "t1")]


async def test_provider_calls_of_one_type_keep_their_order(bench: Any) -> None:
    client = bench.engine.client("topics")
    provider = Provider()
    client.register_trigger_type("topic", provider)
    for _ in range(20):
        client.register_trigger("topic", "f", {"n": 1}, trigger_id="same")
        client.unregister_trigger("same")
    trigger_id = client.register_trigger("topic", "f", {"n": 2}, metadata={"m": 1})
    await trio.testing.wait_all_tasks_blocked()
    assert provider.log == [("register", "same"), ("unregister", "same")] * 20 + [("register", trigger_id)]
    client.unregister_trigger_type("topic")
    assert client.unregister_trigger(trigger_id) is True
    assert client.unregister_trigger(trigger_id) is False


async def test_durable_registration_with_an_in_process_provider(bench: Any) -> None:
    provider = Provider()
    bench.engine.client("topics").register_trigger_type("topic", provider)
    worker = await bench.worker()
    good = await worker.call("engine::register_trigger", {"trigger_type": "topic", "function_id": "f", "config": {}})
    assert provider.bound.keys() == {good["id"]}
    given = {"trigger_type": "topic", "function_id": "f", "config": {"topic": "bad"}}
    error = await worker.call_error("engine::register_trigger", given)
    assert error == {"code": "trigger_registration_failed", "message": "bad topic"}


async def test_names_and_ids(bench: Any) -> None:
    first, second = bench.engine.client("same"), bench.engine.client("same")
    assert (first.name, first.worker_id) == ("same", "same")
    assert (second.name, second.worker_id) == ("same", "same#2")
    first.close()
    with bench.engine.client("same") as third:
        assert third.worker_id == "same"
    assert [worker.id for worker in bench.engine.workers] == ["same#2"]
    with pytest.raises(UsageError):
        second.register_function("", echo)
    with pytest.raises(UsageError):
        second.register_function("x" * 2000, echo)


async def test_an_engine_without_anything_around_it() -> None:
    async with open_engine() as engine:
        with engine.client("me") as client:
            client.register_function("a::f", echo)
            assert (await engine.trigger("a::f", {"x": 1}))["data"] == {"x": 1}
            engine.fire("a::f")
        with pytest.raises(InvocationError) as caught:
            await engine.trigger("a::f")
        assert caught.value.code == "function_not_found"
    with pytest.raises(KeyError, match="mine"):
        async with open_engine():
            raise KeyError("mine")
