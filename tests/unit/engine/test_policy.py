"""The enforcement points of access control: what a plugin's policy decides takes effect at each of them (spec §6)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio

from iii_core.engine import AccessDenied, ListenerConfig, Policy
from iii_core.protocol.messages import RegisterFunction, RegisterTrigger, RegisterTriggerType
from iii_core.testing.wire import WireWorker
from iii_core.transport.port import ConnectionRequest, ListenAddress


class Rules(Policy):
    """Calls of ``public::`` only; everything registered is prefixed; hooks may be slow."""

    def __init__(self, *, middleware: str | None = None) -> None:
        self._middleware = middleware
        self.release = trio.Event()
        self.release.set()

    def refuse_invocation(self, function_id: str, function: Any) -> str | None:
        if function_id.startswith(("public::", "engine::")) or function_id == self._middleware:
            return None
        return f"function '{function_id}' not allowed (add to rbac.expose_functions)"

    def refuse_trigger_type(self, trigger_type: str) -> str | None:
        return None if trigger_type == "allowed" else f"trigger type '{trigger_type}' not allowed"

    @property
    def middleware(self) -> str | None:
        return self._middleware

    @property
    def context(self) -> msgspec.Raw:
        return msgspec.Raw(b'{"user":7}')

    def expose(self, function_id: str) -> str:
        return f"acme::{function_id}"

    async def register_function(self, message: RegisterFunction) -> RegisterFunction | None:
        await self.release.wait()
        if message.id == "forbidden":
            return None
        if message.id == "broken":
            raise ValueError("hook failed")
        return msgspec.structs.replace(message, id=self.expose(message.id), description="by hook")

    async def register_trigger(self, message: RegisterTrigger) -> RegisterTrigger | None:
        if message.trigger_type != "allowed":
            return None
        return msgspec.structs.replace(message, function_id=self.expose(message.function_id))

    async def register_trigger_type(self, message: RegisterTriggerType) -> RegisterTriggerType | None:
        return None


async def connect(bench: Any, policy: Policy, path: str = "/") -> WireWorker:
    """A worker on a second listener whose sessions have ``policy``."""

    async def authenticate(request: ConnectionRequest) -> Policy:
        if request.header("authorization") == "no":
            raise AccessDenied("unknown token")
        if request.header("authorization") == "bug":
            raise ValueError("secret of the auth plugin")
        return policy

    listener = bench.engine.listener(ListenerConfig(port=0), authenticate=authenticate)
    address = await bench.nursery.start(bench.transport.listen, ListenAddress(host="127.0.0.1", port=0), listener)
    bench.url = f"memory://127.0.0.1:{address.port}{path}"
    return await WireWorker.connect(bench.transport, bench.url)


class Public:
    def __init__(self, bench: Any, nursery: trio.Nursery) -> None:
        self.engine, self.transport, self.worker = bench.engine, bench.transport, bench.worker
        self.nursery = nursery
        self.url = ""


@pytest.fixture
async def public(bench: Any) -> Any:
    async with trio.open_nursery() as nursery:
        yield Public(bench, nursery)
        nursery.cancel_scope.cancel()


async def test_forbidden_calls(public: Any) -> None:
    worker, provider = await connect(public, Rules()), await public.worker()
    for function_id in ("public::f", "private::f"):
        await provider.send("registerfunction", id=function_id)
    await provider.settle()
    expected = "function 'private::f' not allowed (add to rbac.expose_functions)"
    assert await worker.call_error("private::f") == {"code": "FORBIDDEN", "message": expected}
    assert (await worker.call_error("no::such"))["code"] == "FORBIDDEN", "refused before it is known to exist"
    enqueue = {"type": "enqueue", "queue": "q"}
    assert (await worker.call_error("private::f", action=enqueue))["code"] == "FORBIDDEN"
    await worker.send("invokefunction", function_id="private::f", action={"type": "void"})
    await worker.settle()
    await provider.expect_silence()
    await worker.start_call("public::f")
    await provider.expect("invokefunction")


async def test_discovery_shows_what_may_be_called(public: Any) -> None:
    worker, provider = await connect(public, Rules()), await public.worker()
    for function_id in ("public::f", "private::f"):
        await provider.send("registerfunction", id=function_id)
    await provider.settle()
    answer = await worker.call("engine::functions::list", {})
    assert [row["function_id"] for row in answer["functions"]] == ["public::f"]
    assert (await worker.call_error("engine::functions::info", {"function_id": "private::f"}))["code"] == "FORBIDDEN"
    batch = await worker.call("engine::functions::info", {"function_ids": ["private::f", "public::g"]})
    assert [row["error"] for row in batch["functions"]] == ["forbidden", "not_found"]
    assert len((await worker.call("engine::workers::list", {}))["workers"]) == 2


async def test_prefixes_are_seen_by_everybody_but_the_worker(public: Any) -> None:
    worker, caller = await connect(public, Rules()), await public.worker()
    await worker.send("registerfunction", id="f", description="own")
    await worker.settle()
    (row,) = (await caller.call("engine::functions::list", {}))["functions"]
    assert (row["function_id"], row["description"]) == ("acme::f", "by hook")
    call_id = await caller.start_call("acme::f", 1)
    call = await worker.expect("invokefunction")
    assert call["function_id"] == "f"
    await worker.answer(call, 2)
    answer = await caller.result(call_id)
    assert (answer["function_id"], answer["result"]) == ("acme::f", 2)
    assert public.engine.workers[0].functions == ("acme::f",)
    await worker.send("unregisterfunction", id="f")
    await worker.settle()
    assert (await caller.call_error("acme::f"))["code"] == "function_not_found"


async def test_refused_registrations_are_silent(public: Any) -> None:
    worker, caller = await connect(public, Rules()), await public.worker()
    for function_id in ("forbidden", "broken", "good"):
        await worker.send("registerfunction", id=function_id)
    await worker.send("registertriggertype", id="mine", description="")
    await worker.send("registertrigger", id="t1", trigger_type="other", function_id="good")
    await worker.send("registertrigger", id="t2", trigger_type="allowed", function_id="good")
    await worker.expect_silence()
    functions = (await caller.call("engine::functions::list", {}))["functions"]
    assert [row["function_id"] for row in functions] == ["acme::good"]
    triggers = (await caller.call("engine::triggers::list", {}))["triggers"]
    assert [(row["id"], row["function_id"]) for row in triggers] == [("t2", "acme::good")]
    assert (await caller.call("engine::trigger-types::list", {}))["trigger_types"] == []


async def test_durable_triggers_obey_the_policy(public: Any) -> None:
    worker, caller = await connect(public, Rules()), await public.worker()
    given = {"trigger_type": "other", "function_id": "f"}
    error = await worker.call_error("engine::register_trigger", given)
    assert error == {"code": "FORBIDDEN", "message": "trigger type 'other' not allowed"}
    await worker.call("engine::register_trigger", given | {"trigger_type": "allowed"})
    (row,) = (await caller.call("engine::triggers::list", {}))["triggers"]
    assert row["function_id"] == "acme::f"


async def test_middleware_replaces_permitted_calls(public: Any) -> None:
    worker, gateway = await connect(public, Rules(middleware="gate::way")), await public.worker()
    await gateway.send("registerfunction", id="gate::way")
    await gateway.settle()
    void = {"type": "void"}
    call_id = await worker.start_call("public::f", {"a": 1}, metadata={"m": 1})
    await worker.send("invokefunction", function_id="public::g", data=[2], action=void)
    await worker.settle()
    first, second = [await gateway.expect("invokefunction") for _ in range(2)]
    context = {"user": 7}
    assert first["data"] == {"function_id": "public::f", "payload": {"a": 1}, "action": None, "context": context}
    assert first["metadata"] == {"m": 1}
    assert second["data"] == {"function_id": "public::g", "payload": [2], "action": void, "context": context}
    await gateway.answer(first, "through")
    assert await worker.result(call_id) == {
        "type": "invocationresult",
        "invocation_id": call_id,
        "function_id": "public::f",
        "result": "through",
    }
    assert (await worker.call_error("private::f"))["code"] == "FORBIDDEN"
    assert "workers" in await worker.call("engine::workers::list", {})
    await gateway.vanish()
    assert (await worker.call_error("public::f"))["code"] == "function_not_found"


@pytest.mark.parametrize(("token", "message"), [("no", "unknown token"), ("bug", "authentication failed")])
@pytest.mark.parametrize("path", ["/", "/otel"])
async def test_denied_connections(
    public: Any, token: str, message: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    await connect(public, Rules())
    before = len(public.engine.workers)
    worker = WireWorker(await public.transport.connect(public.url.rstrip("/") + path, headers={"authorization": token}))
    assert await worker.receive() == {"type": "error", "error": {"code": "AUTH_ERROR", "message": message}}
    with pytest.raises(trio.EndOfChannel):
        await worker.peer.receive()
    assert worker.peer.close_code == 1008, "old SDKs never come back after a clean close"  # type: ignore[attr-defined]
    assert len(public.engine.workers) == before


async def test_a_slow_hook_holds_its_own_connection_alone_and_keeps_order(public: Any) -> None:
    rules = Rules()
    worker, other = await connect(public, rules), await public.worker()
    rules.release = trio.Event()
    await worker.send("registerfunction", id="f")
    await worker.send("unregisterfunction", id="f")
    await worker.send("registerfunction", id="g")
    assert (await other.call("engine::functions::list", {}))["functions"] == []
    rules.release.set()
    await worker.settle()
    functions = (await other.call("engine::functions::list", {}))["functions"]
    assert [row["function_id"] for row in functions] == ["acme::g"]


async def test_a_worker_that_leaves_during_its_hook_registers_nothing(public: Any) -> None:
    rules = Rules()
    worker, other = await connect(public, rules), await public.worker()
    rules.release = trio.Event()
    await worker.send("registerfunction", id="f")
    again = await WireWorker.connect(public.transport, public.url)
    await again.send("reattach", previous_worker_id=worker.worker_id, reattach_token=worker.reattach_token)
    await again.settle()
    rules.release.set()
    assert (await other.call("engine::functions::list", {}))["functions"] == []
