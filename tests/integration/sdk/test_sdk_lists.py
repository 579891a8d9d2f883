"""The four lists of seed 003, asked for by every SDK."""

from __future__ import annotations

import pytest

from .conftest import Hub
from .driver import Client

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


async def listed(client: Client, name: str, key: str, payload: dict[str, object]) -> list[dict[str, object]]:
    answer = await client.call(f"engine::{name}::list", payload)
    rows = answer[key]
    assert isinstance(rows, list)
    return rows


async def test_workers(hub: Hub, client: Client) -> None:
    function_id = f"listed::worker::{client.name}"
    await hub.offer(client, function_id, "echo")
    (worker_id,) = hub.worker_ids(client.name)
    rows = await listed(client, "workers", "workers", {})
    (row,) = [row for row in rows if row["name"] == client.name]
    assert row["id"] == worker_id
    assert row["runtime"] == client.sdk.language
    assert row["version"] == client.sdk.version
    assert row["pid"] == client.process.pid
    assert row["status"] in ("connected", "available", "busy")
    assert (await listed(client, "workers", "workers", {"worker_id": worker_id}))[0]["name"] == client.name


async def test_functions(hub: Hub, client: Client) -> None:
    function_id = f"listed::function::{client.name}"
    await hub.offer(client, function_id, "echo", description="for the list", metadata={"team": "shop"})
    rows = await listed(client, "functions", "functions", {"include_internal": False})
    (row,) = [row for row in rows if row["function_id"] == function_id]
    assert row["description"] == "for the list"
    assert row["metadata"] == {"team": "shop"}
    assert not any(str(row["function_id"]).startswith("engine::") for row in rows)
    rows = await listed(client, "functions", "functions", {"include_internal": True})
    assert "engine::functions::list" in [row["function_id"] for row in rows]


async def test_triggers(hub: Hub, client: Client) -> None:
    """``engine::triggers::list`` means trigger types from 0.21 on, and triggers before (and in the seed)."""
    kind, function_id = f"listed-kind-{client.name}", f"listed::trigger::{client.name}"
    await hub.offer(client, function_id, "record")
    await client.do("provide", type=kind)
    await client.do("bind", handle="listed", type=kind, function_id=function_id, config={"a": 1})
    await client.event("bound", type=kind)
    rows = await listed(client, "triggers", "triggers", {"include_internal": False})
    if client.sdk.generation >= (0, 21):
        assert kind in [row["id"] for row in rows]
        rows = await listed(client, "registered-triggers", "registered_triggers", {})
    (row,) = [row for row in rows if row["function_id"] == function_id]
    assert row["trigger_type"] == kind
    assert row["config"] == {"a": 1}
    await client.do("unbind", handle="listed")


async def test_trigger_types(hub: Hub, client: Client) -> None:
    kind, function_id = f"typed-kind-{client.name}", f"listed::type::{client.name}"
    await client.do("provide", type=kind)
    await hub.offer(client, function_id, "record")
    rows = await listed(client, "trigger-types", "trigger_types", {"include_internal": False})
    (row,) = [row for row in rows if row["id"] == kind]
    assert row["description"] == "a test's"
    rows = await listed(client, "trigger-types", "trigger_types", {"include_internal": True})
    assert {"engine::workers-available", "engine::functions-available"} <= {str(row["id"]) for row in rows}
