"""No frame of one worker ends its connection, or reaches another worker in a state that its own protocol excludes."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iii_core.engine import EngineConfig, ListenerConfig, open_engine
from iii_core.testing.memory_transport import MemoryNetwork, MemoryPlugins
from iii_core.testing.wire import WireWorker
from iii_core.transport.port import ListenAddress, Message

IDS = st.sampled_from(["a::f", "t1", "hook", "engine::workers::list", "engine::register_trigger", "", "x" * 2000, "é"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | IDS,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)
TYPES = st.sampled_from(
    [
        "registertriggertype",
        "unregistertriggertype",
        "registertrigger",
        "triggerregistrationresult",
        "unregistertrigger",
        "registerfunction",
        "unregisterfunction",
        "invokefunction",
        "invocationresult",
        "registerservice",
        "reattach",
        "ping",
        "pong",
        "workerregistered",
        "observe",
        "nonsense",
    ]
)
FIELDS = st.dictionaries(
    st.sampled_from(
        [
            "id",
            "trigger_type",
            "function_id",
            "config",
            "metadata",
            "invocation_id",
            "data",
            "action",
            "result",
            "error",
            "description",
            "invocation",
            "previous_worker_id",
            "reattach_token",
            "request_format",
            "type",
            "baggage",
        ]
    ),
    IDS | VALUES | st.just({"type": "void"}) | st.just({"code": "c", "message": "m"}),
)
FRAMES = st.one_of(
    st.builds(lambda kind, fields: json.dumps({"type": kind} | fields).encode(), TYPES, FIELDS),
    st.builds(lambda kind, fields: json.dumps(fields | {"type": kind}).encode(), TYPES, FIELDS),
    st.text().map(str.encode),
    st.builds(
        lambda kind, fields, cut: json.dumps({"type": kind} | fields).encode()[:cut], TYPES, FIELDS, st.integers(0, 80)
    ),
)


async def fuzz(frames: list[tuple[bytes, bool]]) -> None:
    network = MemoryNetwork()
    async with (
        open_engine(EngineConfig(), plugins=MemoryPlugins(network)) as engine,
        network.open_transport() as transport,
        trio.open_nursery() as nursery,
    ):
        listener = engine.listener(ListenerConfig())
        address = await nursery.start(transport.listen, ListenAddress(host="127.0.0.1", port=0), listener)
        url = f"memory://127.0.0.1:{address.port}/"
        hostile, good = await WireWorker.connect(transport, url), await WireWorker.connect(transport, url)
        await good.send("registerfunction", id="good::f")
        await good.settle()
        for data, text in frames:
            await hostile.peer.send(Message(data=data, text=text))
        await hostile.settle()
        call_id = await good.start_call("good::f", {})
        await good.answer(await good.look_for("invokefunction", function_id="good::f"), 1)
        assert (await good.result(call_id))["result"] == 1
        listed = await good.call("engine::functions::list", {"include_internal": True})
        assert {"good::f", "engine::workers::list"} <= {row["function_id"] for row in listed["functions"]}
        await good.call("engine::registered-triggers::list", {"include_internal": True})
        await good.call("engine::triggers::list", {"include_internal": True})
        await hostile.vanish()
        assert [worker.id for worker in engine.workers] == [good.worker_id]
        for worker in engine.router.workers.values():
            assert worker.credit.owed == (0, 0)
        nursery.cancel_scope.cancel()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(frames=st.lists(st.tuples(FRAMES, st.booleans()), max_size=30))
def test_any_frames(frames: list[tuple[bytes, bool]]) -> None:
    trio.run(fuzz, frames)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b" \n",
        b"{",
        b'{"type":"nope"}',
        b'{"type":"registerfunction"}',
        b'{"type":"registerfunction","id":7}',
        b'{"type":"invokefunction","function_id":"f","invocation_id":"i","data":' + b"[" * 50_000,
        b'{"type":"error","error":{"code":"AUTH_ERROR","message":""}}',
    ],
    ids=lambda frame: repr(frame[:50]),
)
async def test_a_malformed_frame_is_dropped_without_an_answer(
    connect: Callable[[], Awaitable[Any]], frame: bytes
) -> None:
    worker = await connect()
    await worker.send_text(frame)
    await worker.peer.send(Message(data=frame, text=False))
    await worker.expect_silence()


async def test_a_flood_of_malformed_frames_does_not_flood_the_log(
    connect: Callable[[], Awaitable[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    worker = await connect()
    for number in range(500):
        await worker.send_text(f'{{"type":"registerfunction","id":{number}}}')
        await worker.send("registerfunction", id=f"engine::{number}")
        await worker.send("invokefunction", function_id=f"no::{number}")
    await worker.settle()
    assert 1 <= len(caplog.records) <= 4


async def test_binary_json_is_a_message_and_telemetry_is_not(connect: Callable[[], Awaitable[Any]]) -> None:
    worker = await connect()
    await worker.peer.send(Message(data=b'{"type":"ping"}', text=False))
    assert await worker.receive() == {"type": "pong"}
    for kind in (b"OTLP", b"MTRC", b"LOGS"):
        await worker.peer.send(Message(data=kind + b'{"type":"ping"}', text=False))
    await worker.peer.send(Message(data=b'OTL{"type":"ping"}', text=False))
    await worker.expect_silence()
