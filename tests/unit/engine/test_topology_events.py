"""Events of discovery, metrics, telemetry and logs of workers (seed 003; spec protocol §3.6, §4 and §5)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio.testing

from iii_core.transport.port import Message


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Everything here is in memory, so time may jump: what takes how long says nothing of the machine."""
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0.005)}


async def subscribe(worker: Any, kind: str, function_id: str = "on::event", **fields: Any) -> None:
    await worker.send("registerfunction", id=function_id)
    await worker.send(
        "registertrigger", id=f"sub-{kind}", trigger_type=f"engine::{kind}", function_id=function_id, **fields
    )
    await worker.settle()


async def test_workers_available(bench: Any) -> None:
    watcher = await bench.worker()
    await subscribe(watcher, "workers-available", config={}, metadata={"tag": 1})
    await watcher.expect_silence()
    worker = await bench.worker()
    await worker.describe(name="w")
    await worker.settle()
    await worker.vanish()
    for event in ("worker_connected", "worker_metadata_updated", "worker_disconnected"):
        call = await watcher.expect("invokefunction")
        assert call["data"] == {"event": event, "worker_id": worker.worker_id}
        assert call["metadata"] == {"tag": 1}
    await watcher.send("unregistertrigger", id="sub-workers-available")
    await watcher.settle()
    await bench.worker()
    await watcher.expect_silence()


async def test_functions_available(bench: Any) -> None:
    watcher, worker = await bench.worker(), await bench.worker()
    await subscribe(watcher, "functions-available")
    await trio.sleep(0.25)
    await watcher.expect_silence()
    with trio.fail_after(2):
        for number in range(5):
            await worker.send("registerfunction", id=f"a::{number}", description="d", metadata={"k": 1})
        call = await watcher.expect("invokefunction")
    data = call["data"]
    assert data["event"] == "functions_changed"
    ids = [row["function_id"] for row in data["functions"]]
    assert ids == sorted(ids)
    assert "engine::workers::list" in ids, "unfiltered"
    assert {"function_id": "a::3", "worker_name": "a", "description": "d", "metadata": {"k": 1}} in data["functions"]
    await trio.sleep(0.25)
    await watcher.expect_silence()


async def test_functions_available_after_each_kind_of_change(bench: Any) -> None:
    watcher, worker = await bench.worker(), await bench.worker()
    await subscribe(watcher, "functions-available")

    async def seen() -> bool:
        with trio.fail_after(2):
            call = await watcher.look_for("invokefunction")
        return any(row["function_id"] == "a::f" for row in call["data"]["functions"])

    await worker.send("registerfunction", id="a::f")
    assert await seen()
    await worker.send("registerfunction", id="a::f", description="only this changed")
    await worker.settle()
    await trio.sleep(0.25)
    await watcher.expect_silence()
    await worker.send("unregisterfunction", id="a::f")
    assert not await seen()
    await worker.send("registerfunction", id="a::f")
    assert await seen()
    await worker.vanish()
    assert not await seen()
    # gone and back within one event: whoever waits to retry a call must still be told
    again = await bench.worker()
    await again.send("registerfunction", id="a::f")
    assert await seen()
    other = await bench.worker()
    await other.send("reattach", previous_worker_id=again.worker_id, reattach_token=again.reattach_token)
    await other.send("registerfunction", id="a::f")
    assert await seen()


async def test_metrics_of_workers(bench: Any) -> None:
    worker, asking = await bench.worker(), await bench.worker()

    def frame(worker_id: str, **gauges: Any) -> Message:
        attribute = {"key": "worker.id", "value": {"stringValue": worker_id}}
        metrics = [
            {"name": f"iii.worker.{name}", "gauge": {"dataPoints": [{**value, "attributes": [attribute]}]}}
            for name, value in gauges.items()
        ]
        body = {"resourceMetrics": [{"resource": {}, "scopeMetrics": [{"metrics": metrics}]}]}
        return Message(data=b"MTRC" + json.dumps(body).encode(), text=False)

    gauges = {"cpu.percent": {"asDouble": 1.5}, "memory.rss": {"asInt": "52000000"}, "other": {"asInt": 1}}
    await worker.peer.send(frame(worker.worker_id, **gauges))
    await worker.peer.send(frame(asking.worker_id, **gauges))
    await worker.peer.send(Message(data=b"MTRC{not json", text=False))
    await worker.peer.send(Message(data=b"OTLP\xff\xfe", text=False))
    await worker.settle()
    rows = {row["id"]: row["latest_metrics"] for row in (await asking.call("engine::workers::list", {}))["workers"]}
    metrics = rows[worker.worker_id]
    assert metrics.pop("timestamp_ms") > 0
    assert metrics == {"cpu_percent": 1.5, "memory_rss": 52000000, "runtime": "node"}
    assert rows[asking.worker_id] is None, "a worker's connection speaks of that worker alone"
    telemetry = await bench.transport.connect(bench.url + "otel")
    await telemetry.send(frame(asking.worker_id, uptime_seconds={"asInt": 3}))
    await telemetry.send(Message(data=b"ignored text"))
    await trio.testing.wait_all_tasks_blocked()
    (row,) = (await asking.call("engine::workers::list", {"worker_id": asking.worker_id}))["workers"]
    assert row["latest_metrics"]["uptime_seconds"] == 3
    assert len(bench.engine.workers) == 2, "a telemetry connection is no worker"


async def test_telemetry_sinks(bench: Any) -> None:
    got: list[tuple[str, bytes]] = []
    remove = bench.engine.add_telemetry_sink(lambda worker_id, frame: got.append((worker_id, frame)))
    worker = await bench.worker()
    await worker.peer.send(Message(data=b"LOGS{}", text=False))
    await worker.settle()
    remove()
    await worker.peer.send(Message(data=b"LOGS{}", text=False))
    await worker.settle()
    assert got == [(worker.worker_id, b"LOGS{}")]


@pytest.mark.parametrize("level", ["trace", "debug", "info", "warn", "error"])
async def test_log_functions(connect: Any, caplog: pytest.LogCaptureFixture, level: str) -> None:
    caplog.set_level("DEBUG", logger="iii.worker")
    worker = await connect()
    given = {"message": "line\nforged \x1b[2J", "service_name": "svc", "data": {"a": 1}}
    assert await worker.call(f"engine::log::{level}", given) is None
    await worker.send(
        "invokefunction", function_id=f"engine::log::{level}", data={"message": 5}, action={"type": "void"}
    )
    await worker.settle()
    assert [record.getMessage() for record in caplog.records if record.name == "iii.worker"] == [
        "svc: lineforged [2J",
        f"{worker.worker_id}: ",
    ]
