"""The discovery functions ``engine::*::list`` and ``::info`` (seed: worker lifecycle; spec protocol §3).

`engine::triggers::list` means triggers in the seeds and trigger types from SDK 0.21 on, so answers depend on the
generation that the caller reported when it registered; a caller without one gets the seeds' shapes, as supersets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import msgspec

from iii_core.engine import rows
from iii_core.engine.describe import wants_new_shapes
from iii_core.engine.endpoint import now_ms
from iii_core.engine.router import RESERVED
from iii_core.errors import InvocationError
from iii_core.protocol import codes
from iii_core.protocol.codec import is_object

if TYPE_CHECKING:
    from msgspec import Raw

    from iii_core.engine.endpoint import Endpoint
    from iii_core.engine.functions import Function
    from iii_core.engine.router import Router

Arguments: TypeAlias = Mapping[str, Any]
Query: TypeAlias = Callable[["Router", "Endpoint", Arguments], Any]

BATCH: Final = 32


def arguments(data: Raw, limit: int) -> dict[str, Any]:
    """The input of an engine function; what is no object counts as ``{}`` (spec protocol §3).

    Raises:
        InvocationError: it has more than ``limit`` bytes.
    """
    if memoryview(data).nbytes > limit:
        raise InvocationError(codes.INVALID_ARGUMENTS, f"the functions of the engine take {limit} bytes of arguments")
    return msgspec.json.decode(data, type=dict[str, Any]) if is_object(data) else {}


def _text(given: Arguments, key: str) -> str | None:
    value = given.get(key)
    return value if isinstance(value, str) and value else None


def _required(given: Arguments, key: str) -> str:
    value = _text(given, key)
    if value is None:
        raise InvocationError(codes.INVALID_ARGUMENTS, f"missing {key!r}")
    return value


def _internal(given: Arguments) -> bool:
    return given.get("include_internal") is True


def _rank(term: str | None, identifier: str, description: str | None) -> int | None:
    """How well a row matches a search: 0 by a segment, 1 by id, 2 by description, None not at all (§3.1)."""
    if term is None:
        return 0
    wanted, text = term.lower(), identifier.lower()
    if any(segment.startswith(wanted) for segment in text.split("::")):
        return 0
    if wanted in text:
        return 1
    return 2 if wanted in (description or "").lower() else None


def _searched(
    given: Arguments, found: list[dict[str, Any]], key: str, described: str = "description"
) -> list[dict[str, Any]]:
    """Rows that pass ``search``, ``prefix``, ``worker`` and ``workers``, in order of rank and id."""
    term, prefix, worker = _text(given, "search"), _text(given, "prefix") or "", _text(given, "worker")
    workers = given.get("workers")
    ranked: list[tuple[int, str, dict[str, Any]]] = []
    for row in found:
        rank = _rank(term, row[key], row.get(described))
        if rank is None or not row[key].startswith(prefix):
            continue
        if worker is not None and row.get("worker_name") != worker:
            continue
        if isinstance(workers, list) and workers and row.get("worker_name") not in workers:
            continue
        ranked.append((rank, row[key], row))
    return [row for _, _, row in sorted(ranked, key=lambda item: item[:2])]


def list_functions(router: Router, caller: Endpoint, given: Arguments) -> Any:
    """``engine::functions::list``: what this session may call."""
    shown = [
        function
        for function in router.functions
        if (_internal(given) or not rows.is_internal(function))
        and caller.policy.refuse_invocation(function.id, function) is None
    ]
    render = rows.function_row if wants_new_shapes(caller.record) else rows.function_legacy_row
    return {"functions": _searched(given, [render(function) for function in shown], "function_id")}


def _lookup(router: Router, caller: Endpoint, function_id: str) -> Function | str:
    function = router.functions.get(function_id)
    denied = caller.policy.refuse_invocation(function_id, function)
    if denied is not None:
        return "forbidden"
    return function or "not_found"


def function_info(router: Router, caller: Endpoint, given: Arguments) -> Any:
    """``engine::functions::info``: one function, or up to 32 with an error in the place of each that is not there."""
    single, many = _text(given, "function_id"), cast("object", given.get("function_ids"))
    if (single is None) == (many is None):
        raise InvocationError(codes.INVALID_ARGUMENTS, "give either 'function_id' or 'function_ids'")
    if single is not None:
        found = _lookup(router, caller, single)
        if found == "forbidden":
            text = caller.policy.refuse_invocation(single, router.functions.get(single))
            raise InvocationError(codes.FORBIDDEN, text or single)
        if isinstance(found, str):
            raise InvocationError(codes.NOT_FOUND, f"Function {single} not found")
        return rows.function_detail(router, found)
    try:
        wanted = list(dict.fromkeys(msgspec.convert(many, list[str])))
    except msgspec.ValidationError:
        wanted = []
    if not 0 < len(wanted) <= BATCH:
        raise InvocationError(codes.INVALID_ARGUMENTS, f"'function_ids' must be a list of 1 to {BATCH} ids")
    details: list[dict[str, Any]] = []
    for function_id in wanted:
        found = _lookup(router, caller, function_id)
        missing = {"function_id": function_id, "error": found}
        details.append(missing if isinstance(found, str) else rows.function_detail(router, found))
    return {"functions": details}


def list_workers(router: Router, caller: Endpoint, given: Arguments) -> Any:
    """``engine::workers::list``: every connected worker, one without a pid too."""
    del caller
    wanted = _text(given, "worker_id")
    workers = [
        worker
        for worker in router.workers.values()
        if (_internal(given) or not worker.record.internal) and wanted in (None, worker.id)
    ]
    found = [rows.worker_row(worker) for worker in workers]
    for key in ("runtime", "status"):
        value = _text(given, key)
        found = [row for row in found if value in (None, row[key])]
    term = _text(given, "search")
    found = [row for row in found if _rank(term, row["name"] or row["id"], row["description"]) is not None]
    found.sort(key=lambda row: (row["name"] or row["id"], row["id"]))
    return {"workers": found, "timestamp": now_ms()}


def worker_info(router: Router, caller: Endpoint, given: Arguments) -> Any:
    """``engine::workers::info``: the worker of a name (in-process ones first) or of a ``worker_id``."""
    del caller
    wanted, identifier = _text(given, "name"), _text(given, "worker_id")
    if wanted is None and identifier is None:
        raise InvocationError(codes.INVALID_ARGUMENTS, "missing 'name'")
    named = [
        worker
        for worker in router.workers.values()
        if (wanted is None or worker.record.name == wanted) and identifier in (None, worker.id)
    ]
    if not named:
        raise InvocationError(codes.NOT_FOUND, f"Worker {wanted or identifier} not found")
    worker = min(named, key=lambda found: not found.trusted)
    functions = [function for function in router.functions if function.owner is worker]
    types = [found for found in router.triggers.types if found.provider is worker]
    triggers = [trigger for trigger in router.triggers if trigger.owner is worker and trigger.active]
    return {
        "worker": {
            key: value
            for key, value in rows.worker_row(worker).items()
            if value is not None or key not in {"pid", "latest_metrics", "sandbox"}
        },
        "functions": sorted((rows.function_row(found) for found in functions), key=lambda row: row["function_id"]),
        "trigger_types": sorted((rows.type_row(found) for found in types), key=lambda row: row["id"]),
        "registered_triggers": [rows.trigger_row(router, trigger) for trigger in triggers],
    }


def list_triggers(router: Router, caller: Endpoint, given: Arguments) -> Any:
    """``engine::triggers::list``: trigger types from 0.21 on, triggers before."""
    if wants_new_shapes(caller.record):
        found = [rows.type_row(found) for found in router.triggers.types if _shown(given, found.id)]
        return {"triggers": _searched(given, found, "id")}
    shown = [trigger for trigger in router.triggers if _shown(given, trigger.function_id)]
    return {"triggers": _searched(given, [rows.trigger_legacy_row(router, found) for found in shown], "id")}


def list_trigger_types(router: Router, caller: Endpoint, given: Arguments) -> Any:
    """``engine::trigger-types::list``: types with their config and call schemas."""
    del caller
    found = [rows.type_legacy_row(found) for found in router.triggers.types if _shown(given, found.id)]
    return {"trigger_types": _searched(given, found, "id")}


def trigger_type_info(router: Router, caller: Endpoint, given: Arguments) -> Any:
    """``engine::triggers::info``: one trigger type."""
    del caller
    identifier = _required(given, "id")
    found = router.triggers.type(identifier)
    if found is None:
        raise InvocationError(codes.NOT_FOUND, f"Trigger type {identifier} not found")
    return rows.type_detail(router, found)


def list_registered_triggers(router: Router, caller: Endpoint, given: Arguments) -> Any:
    """``engine::registered-triggers::list``: active triggers."""
    del caller
    kind, function_id = _text(given, "trigger_type"), _text(given, "function_id")
    shown = [
        rows.trigger_row(router, trigger)
        for trigger in router.triggers
        if trigger.active
        and _shown(given, trigger.function_id)
        and kind in (None, trigger.type)
        and function_id in (None, trigger.function_id)
    ]
    return {"registered_triggers": _searched(given, shown, "id", "function_id")}


def registered_trigger_info(router: Router, caller: Endpoint, given: Arguments) -> Any:
    """``engine::registered-triggers::info``: one trigger with its type and its function."""
    del caller
    identifier = _required(given, "id")
    trigger = router.triggers.get(identifier)
    if trigger is None:
        raise InvocationError(codes.NOT_FOUND, f"Trigger {identifier} not found")
    kind = router.triggers.type(trigger.type)
    function = router.functions.get(trigger.function_id)
    row = rows.trigger_row(router, trigger) | rows.without_null(metadata=trigger.metadata)
    row["trigger"] = rows.type_detail(router, kind) if kind else None
    row["function"] = rows.function_detail(router, function) if function else None
    return row


def _shown(given: Arguments, identifier: str) -> bool:
    return _internal(given) or not identifier.startswith(RESERVED)


QUERIES: Final[dict[str, tuple[Query, str]]] = {
    "engine::functions::list": (list_functions, "List registered functions"),
    "engine::functions::info": (function_info, "Describe functions"),
    "engine::workers::list": (list_workers, "List connected workers"),
    "engine::workers::info": (worker_info, "Describe a worker"),
    "engine::triggers::list": (list_triggers, "List trigger types (SDK 0.21 and later) or triggers (earlier)"),
    "engine::triggers::info": (trigger_type_info, "Describe a trigger type"),
    "engine::trigger-types::list": (list_trigger_types, "List trigger types with their schemas"),
    "engine::registered-triggers::list": (list_registered_triggers, "List active triggers"),
    "engine::registered-triggers::info": (registered_trigger_info, "Describe a trigger"),
}
