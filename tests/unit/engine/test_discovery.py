"""Discovery in both generations, events, and what workers say of themselves (seeds 002/003; spec protocol §3 to §5)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio.testing

from iii_core.transport.port import Message

OLD: dict[str, Any] = {"runtime": "python", "version": "0.19.7"}
NEW: dict[str, Any] = {"runtime": "node", "version": "0.22.1"}


async def shop(bench: Any) -> Any:
    """A worker with a function, a trigger type, a bound trigger and a waiting one."""
    worker = await bench.worker()
    await worker.describe(name="shop", runtime="python", version="0.25.0", pid=42, os="Linux", isolation=None)
    await worker.send(
        "registerfunction",
        id="orders::create",
        description="Create an order",
        request_format={"type": "object"},
        response_format={"type": "string"},
        metadata={"team": "shop"},
    )
    await worker.send("registerfunction", id="orders::hidden", metadata={"internal": True})
    await worker.send("registerfunction", id="plain")
    await worker.send(
        "registertriggertype", id="webhook", description="Fires on hooks", trigger_request_format={"type": "object"}
    )
    await worker.send(
        "registertrigger",
        id="t1",
        trigger_type="webhook",
        function_id="orders::create",
        config={"api_path": "/orders"},
        metadata={"m": 1},
    )
    await worker.send("registertrigger", id="t2", trigger_type="cron", function_id="plain")
    await worker.settle()
    return worker


async def observer(bench: Any, generation: dict[str, Any] | None) -> Any:
    worker = await bench.worker()
    if generation is not None:
        await worker.describe(name="observer", **generation)
    await worker.settle()
    return worker


@pytest.mark.parametrize("generation", [None, OLD, {"runtime": "x", "version": "nonsense"}])
async def test_the_seeds_shapes(bench: Any, generation: dict[str, Any] | None) -> None:
    await shop(bench)
    asking = await observer(bench, generation)
    assert (await asking.call("engine::functions::list", {"include_internal": False}))["functions"] == [
        {
            "function_id": "orders::create",
            "worker_name": "shop",
            "description": "Create an order",
            "request_format": {"type": "object"},
            "response_format": {"type": "string"},
            "metadata": {"team": "shop"},
        },
        {
            "function_id": "plain",
            "worker_name": "shop",
            "description": None,
            "request_format": None,
            "response_format": None,
            "metadata": None,
        },
    ]
    common = {"worker_name": "shop"}
    assert (await asking.call("engine::triggers::list", {}))["triggers"] == [
        common
        | {
            "id": "t1",
            "trigger_type": "webhook",
            "function_id": "orders::create",
            "config": {"api_path": "/orders"},
            "config_summary": '{"api_path":"/orders"}',
            "metadata": {"m": 1},
            "status": "active",
        },
        common
        | {
            "id": "t2",
            "trigger_type": "cron",
            "function_id": "plain",
            "config": {},
            "config_summary": "{}",
            "metadata": None,
            "status": "pending",
        },
    ]
    assert await asking.call("engine::trigger-types::list", {}) == {
        "trigger_types": [
            {
                "id": "webhook",
                "worker_name": "shop",
                "description": "Fires on hooks",
                "trigger_request_format": {"type": "object"},
                "call_request_format": None,
            }
        ]
    }


@pytest.mark.parametrize("version", ["0.21.0", "0.21.8", "0.22.1", "0.25.0", "1.0.0", "v0.21.0-rc.1"])
async def test_the_shapes_since_0_21(bench: Any, version: str) -> None:
    await shop(bench)
    asking = await observer(bench, {"version": version})
    assert (await asking.call("engine::functions::list", {}))["functions"] == [
        {
            "function_id": "orders::create",
            "worker_name": "shop",
            "description": "Create an order",
            "metadata": {"team": "shop"},
        },
        {"function_id": "plain", "worker_name": "shop"},
    ]
    assert await asking.call("engine::triggers::list", {}) == {
        "triggers": [{"id": "webhook", "worker_name": "shop", "description": "Fires on hooks"}]
    }
    assert await asking.call("engine::registered-triggers::list", {}) == {
        "registered_triggers": [
            {
                "id": "t1",
                "trigger_type": "webhook",
                "function_id": "orders::create",
                "worker_name": "shop",
                "config": {"api_path": "/orders"},
                "config_summary": '{"api_path":"/orders"}',
            }
        ]
    }


@pytest.mark.parametrize("generation", [None, OLD, NEW])
async def test_every_connected_worker_is_listed_one_without_a_pid_too(
    bench: Any, generation: dict[str, Any] | None
) -> None:
    worker = await shop(bench)
    silent = await bench.worker()
    bench.engine.client("inside", description="in the engine")
    asking = await observer(bench, generation)
    answer = await asking.call("engine::workers::list", {})
    rows = {row["id"]: row for row in answer["workers"]}
    assert rows.keys() == {worker.worker_id, silent.worker_id, asking.worker_id, "inside"}
    assert isinstance(answer["timestamp"], int)
    row = rows[worker.worker_id]
    assert 0 <= answer["timestamp"] - row.pop("connected_at_ms") < 60_000
    assert row == {
        "id": worker.worker_id,
        "name": "shop",
        "description": None,
        "runtime": "python",
        "version": "0.25.0",
        "os": "Linux",
        "pid": 42,
        "isolation": None,
        "ip_address": "127.0.0.1",
        "sandbox": None,
        "status": "available",
        "function_count": 3,
        "functions": ["orders::create", "orders::hidden", "plain"],
        "active_invocations": 0,
        "internal": False,
        "latest_metrics": None,
    }
    assert rows[silent.worker_id]["status"] == "connected"
    assert rows["inside"]["isolation"] == "in-process"
    assert "reattach_token" not in json.dumps(answer)
    (only,) = (await asking.call("engine::workers::list", {"worker_id": silent.worker_id}))["workers"]
    assert only["id"] == silent.worker_id
    filtered = await asking.call("engine::workers::list", {"runtime": "python", "status": "available", "search": "SHO"})
    assert [row["id"] for row in filtered["workers"]] == [worker.worker_id]


async def test_internal_rows_only_if_asked_for(bench: Any) -> None:
    await shop(bench)
    asking = await observer(bench, OLD)
    everything = {"include_internal": True}
    functions = [row["function_id"] for row in (await asking.call("engine::functions::list", everything))["functions"]]
    assert "orders::hidden" in functions
    assert "engine::workers::register" in functions
    assert functions == sorted(functions)
    types = [row["id"] for row in (await asking.call("engine::trigger-types::list", everything))["trigger_types"]]
    assert types == ["engine::functions-available", "engine::workers-available", "webhook"]
    workers = [row["id"] for row in (await asking.call("engine::workers::list", everything))["workers"]]
    assert "iii-engine-functions" in workers


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"search": "create"}, ["orders::create"]),
        ({"search": "CREATE AN"}, ["orders::create"]),
        ({"search": "la"}, ["plain"]),
        ({"prefix": "orders::"}, ["orders::create"]),
        ({"worker": "shop"}, ["orders::create", "plain"]),
        ({"workers": ["other"]}, []),
        ({"worker": "other"}, []),
        ({"search": "e"}, ["orders::create"]),
        ({"search": 7, "prefix": None, "workers": "no", "include_internal": "yes"}, ["orders::create", "plain"]),
        (None, ["orders::create", "plain"]),
        ([], ["orders::create", "plain"]),
    ],
)
async def test_filters_of_functions(bench: Any, given: Any, expected: list[str]) -> None:
    await shop(bench)
    asking = await observer(bench, NEW)
    answer = await asking.call("engine::functions::list", given)
    assert [row["function_id"] for row in answer["functions"]] == expected


async def test_search_ranks_segments_before_substrings_before_descriptions(connect: Any) -> None:
    worker = await connect()
    for function_id, description in (("a::described", "the cart"), ("a::mycart", None), ("z::cart::add", None)):
        await worker.send("registerfunction", id=function_id, description=description)
    answer = await worker.call("engine::functions::list", {"search": "cart"})
    assert [row["function_id"] for row in answer["functions"]] == ["z::cart::add", "a::mycart", "a::described"]


async def test_function_details(bench: Any) -> None:
    await shop(bench)
    asking = await observer(bench, NEW)
    detail = {
        "function_id": "orders::create",
        "worker_name": "shop",
        "description": "Create an order",
        "metadata": {"team": "shop"},
        "request_schema": {"type": "object"},
        "response_schema": {"type": "string"},
        "registered_triggers": [{"id": "t1", "trigger_type": "webhook", "config": {"api_path": "/orders"}}],
    }
    assert await asking.call("engine::functions::info", {"function_id": "orders::create"}) == detail
    batch = await asking.call("engine::functions::info", {"function_ids": ["no", "orders::create", "no"]})
    assert batch == {"functions": [{"function_id": "no", "error": "not_found"}, detail]}
    assert (await asking.call_error("engine::functions::info", {"function_id": "no"}))["code"] == "NOT_FOUND"
    many = [str(number) for number in range(33)]
    for wrong in ({}, {"function_id": "a", "function_ids": ["b"]}, {"function_ids": [1]}, {"function_ids": many}):
        assert (await asking.call_error("engine::functions::info", wrong))["code"] == "INVALID_ARGUMENTS"


async def test_worker_and_trigger_details(bench: Any) -> None:
    worker = await shop(bench)
    asking = await observer(bench, NEW)
    info = await asking.call("engine::workers::info", {"name": "shop"})
    assert info["worker"]["id"] == worker.worker_id
    assert info["worker"]["pid"] == 42
    assert "latest_metrics" not in info["worker"]
    assert [row["function_id"] for row in info["functions"]] == ["orders::create", "orders::hidden", "plain"]
    assert [row["id"] for row in info["trigger_types"]] == ["webhook"]
    assert [row["id"] for row in info["registered_triggers"]] == ["t1"]
    assert (await asking.call_error("engine::workers::info", {"name": "no"}))["code"] == "NOT_FOUND"
    assert (await asking.call_error("engine::workers::info", {}))["code"] == "INVALID_ARGUMENTS"
    assert await asking.call("engine::triggers::info", {"id": "webhook"}) == {
        "id": "webhook",
        "worker_name": "shop",
        "description": "Fires on hooks",
        "configuration_schema": {"type": "object"},
        "instance_count": 1,
    }
    assert (await asking.call_error("engine::triggers::info", {"id": "no"}))["code"] == "NOT_FOUND"
    trigger = await asking.call("engine::registered-triggers::info", {"id": "t1"})
    assert trigger["metadata"] == {"m": 1}
    assert trigger["trigger"]["id"] == "webhook"
    assert trigger["function"]["function_id"] == "orders::create"
    waiting = await asking.call("engine::registered-triggers::info", {"id": "t2"})
    assert waiting["trigger"] is None
    assert (await asking.call_error("engine::registered-triggers::info", {"id": "no"}))["code"] == "NOT_FOUND"


async def test_the_summary_of_a_long_config_is_cut(connect: Any) -> None:
    worker = await connect()
    await worker.send("registertriggertype", id="x", description="")
    config = '{ "key" : "' + "é" * 100 + '" }'
    await worker.send_text(
        f'{{"type":"registertrigger","id":"t","trigger_type":"x","function_id":"f","config":{config}}}'
    )
    answer = await worker.call("engine::registered-triggers::list", {})
    assert answer["registered_triggers"][0]["config_summary"] == '{"key":"' + "é" * 72 + "…"


async def test_nameless_workers_and_well_known_types(connect: Any) -> None:
    worker = await connect()
    await worker.send("registerfunction", id="jobs::tick")
    await worker.send("registertriggertype", id="cron", description=None)
    assert (await worker.call("engine::functions::list", {}))["functions"][0]["worker_name"] == "jobs"
    assert (await worker.call("engine::trigger-types::list", {}))["trigger_types"][0]["worker_name"] == "iii-cron"


async def test_a_description_is_made_safe_and_clears_nothing(connect: Any) -> None:
    worker = await connect()
    await worker.describe(
        name="a\x1b[31mb\u202ec\n",
        description="x" * 500,
        pid=7,
        os="o",
        telemetry={"language": "en", "amplitude_api_key": "secret", "framework": 3},
        _caller_worker_id="forged",
    )
    await worker.describe(name=None, description=5, pid=True, os=["o"], isolation="docker", version=None)
    await worker.describe(pid=-1)
    (row,) = (await worker.call("engine::workers::list", {}))["workers"]
    assert (row["name"], row["description"], row["os"], row["isolation"]) == ("a[31mbc", "x" * 280, "o", "docker")
    assert (row["runtime"], row["version"], row["pid"]) == ("unknown", None, 7)
    assert "secret" not in json.dumps(row)


async def test_registering_as_a_call_is_answered(connect: Any) -> None:
    worker = await connect()
    assert await worker.call("engine::workers::register", {"name": "w"}) == {"success": True}


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
