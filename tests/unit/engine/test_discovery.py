"""Discovery in both generations, events, and what workers say of themselves (seeds 002/003; spec protocol §3 to §5)."""

from __future__ import annotations

import json
from typing import Any

import pytest

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
