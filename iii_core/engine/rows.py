"""Rows of the discovery functions: pure functions from routing state to JSON-able values (spec protocol §3).

Bodies stay `msgspec.Raw`; they are put into answers without being decoded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from iii_core.engine.router import RESERVED
from iii_core.protocol.messages import is_null

if TYPE_CHECKING:
    from msgspec import Raw

    from iii_core.engine.endpoint import Endpoint
    from iii_core.engine.functions import Function
    from iii_core.engine.router import Router
    from iii_core.engine.triggers import Trigger, TriggerType

TYPE_OWNERS: Final = {
    "http": "iii-http",
    "cron": "iii-cron",
    "subscribe": "iii-pubsub",
    "state": "iii-state",
    "durable:subscriber": "queue",
    "stream": "iii-stream",
    "stream:join": "iii-stream",
    "stream:leave": "iii-stream",
    "log": "iii-observability",
    "trace": "iii-observability",
    "configuration": "configuration",
}
"""Who is shown as the provider of a well-known type whose provider has no name (spec protocol §3.3)."""


def worker_name(owner: Endpoint | None, function_id: str) -> str:
    """The name of an owner, else the first segment of the id."""
    return (owner.record.name if owner else None) or function_id.split("::", 1)[0]


def type_worker_name(trigger_type: TriggerType) -> str:
    """The name of a provider, else who usually provides the type."""
    name = trigger_type.provider.record.name
    return name or TYPE_OWNERS.get(trigger_type.id) or trigger_type.id.split("::", 1)[0]


def is_internal(function: Function) -> bool:
    """Whether lists hide a function unless asked for internal ones."""
    return function.internal or (function.id.startswith(RESERVED) and not function.id.startswith("engine::queue::"))


def without_null(**bodies: Raw) -> dict[str, Raw]:
    """Those bodies that are there."""
    return {key: body for key, body in bodies.items() if not is_null(body)}


def function_row(function: Function) -> dict[str, Any]:
    """A function in lists and ``functions-available``."""
    row: dict[str, Any] = {"function_id": function.id, "worker_name": worker_name(function.owner, function.id)}
    if function.description is not None:
        row["description"] = function.description
    return row | without_null(metadata=function.metadata)


def function_legacy_row(function: Function) -> dict[str, Any]:
    """A function for callers before 0.21: nulls are shown."""
    return {
        "function_id": function.id,
        "worker_name": worker_name(function.owner, function.id),
        "description": function.description,
        "request_format": None,
        "response_format": None,
        "metadata": None,
    } | without_null(
        request_format=function.request_format,
        response_format=function.response_format,
        metadata=function.metadata,
    )


def function_detail(router: Router, function: Function) -> dict[str, Any]:
    """A function with its schemas and the triggers bound to it."""
    triggers = [trigger for trigger in router.triggers if trigger.active and trigger.function_id == function.id]
    row = function_row(function)
    row |= without_null(request_schema=function.request_format, response_schema=function.response_format)
    row["registered_triggers"] = [
        {"id": trigger.id, "trigger_type": trigger.type, "config": trigger.config} for trigger in triggers
    ]
    return row


def worker_row(worker: Endpoint) -> dict[str, Any]:
    """A worker: the keys of every SDK generation; nulls are shown (spec protocol §3.2, §3.5)."""
    record = worker.record
    return {
        "id": record.id,
        "name": record.name,
        "description": record.description,
        "runtime": record.runtime,
        "version": record.version,
        "os": record.os,
        "pid": record.pid,
        "isolation": record.isolation,
        "ip_address": record.ip_address,
        "sandbox": record.sandbox,
        "status": str(worker.status),
        "connected_at_ms": record.connected_at_ms,
        "function_count": len(worker.functions),
        "functions": sorted(worker.functions.values()),
        "active_invocations": len(worker.executing),
        "internal": record.internal,
        "latest_metrics": record.latest_metrics,
    }


def type_row(trigger_type: TriggerType) -> dict[str, Any]:
    """A trigger type in lists."""
    return {
        "id": trigger_type.id,
        "worker_name": type_worker_name(trigger_type),
        "description": trigger_type.description or "",
    }


def type_legacy_row(trigger_type: TriggerType) -> dict[str, Any]:
    """A trigger type with the schemas that it advertises (``engine::trigger-types::list``)."""
    return (
        type_row(trigger_type)
        | {"trigger_request_format": None, "call_request_format": None}
        | without_null(
            trigger_request_format=trigger_type.trigger_request_format,
            call_request_format=trigger_type.call_request_format,
        )
    )


def type_detail(router: Router, trigger_type: TriggerType) -> dict[str, Any]:
    """A trigger type with its schemas and how many triggers it has."""
    row = type_row(trigger_type) | without_null(
        configuration_schema=trigger_type.trigger_request_format,
        request_schema=trigger_type.call_request_format,
    )
    row["instance_count"] = sum(trigger.active for trigger in router.triggers.of_type(trigger_type.id))
    return row


def trigger_worker_name(router: Router, trigger: Trigger) -> str:
    """Who registered a trigger; for one without an owner, whose function it is."""
    function = router.functions.get(trigger.function_id)
    owner = trigger.owner or (function.owner if function else None)
    return worker_name(owner, trigger.function_id)


def trigger_row(router: Router, trigger: Trigger) -> dict[str, Any]:
    """A trigger in lists."""
    return {
        "id": trigger.id,
        "trigger_type": trigger.type,
        "function_id": trigger.function_id,
        "worker_name": trigger_worker_name(router, trigger),
        "config": trigger.config,
        "config_summary": trigger.summary,
    }


def trigger_legacy_row(router: Router, trigger: Trigger) -> dict[str, Any]:
    """A trigger for callers before 0.21; ``status`` tells those that wait for a provider."""
    row = trigger_row(router, trigger) | {"metadata": None, "status": "active" if trigger.active else "pending"}
    return row | without_null(metadata=trigger.metadata)
