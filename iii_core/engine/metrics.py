"""Workers' gauges out of OTLP/JSON metric frames (spec protocol §5.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from iii_core.engine.endpoint import now_ms

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX: Final = "iii.worker."
KEYS: Final = {
    "memory.heap_used": "memory_heap_used",
    "memory.heap_total": "memory_heap_total",
    "memory.rss": "memory_rss",
    "memory.external": "memory_external",
    "cpu.percent": "cpu_percent",
    "cpu.user_micros": "cpu_user_micros",
    "cpu.system_micros": "cpu_system_micros",
    "event_loop.lag_ms": "event_loop_lag_ms",
    "uptime_seconds": "uptime_seconds",
}


class _Value(msgspec.Struct):
    stringValue: str | None = None  # noqa: N815 - OTLP/JSON


class _Attribute(msgspec.Struct):
    key: str = ""
    value: _Value | None = None


class _Point(msgspec.Struct):
    asDouble: float | str | None = None  # noqa: N815 - OTLP/JSON
    asInt: int | str | None = None  # noqa: N815 - OTLP/JSON, decimal strings allowed
    attributes: list[_Attribute] = []


class _Points(msgspec.Struct):
    dataPoints: list[_Point] = []  # noqa: N815 - OTLP/JSON


class _Metric(msgspec.Struct):
    name: str = ""
    gauge: _Points | None = None
    sum: _Points | None = None


class _Scope(msgspec.Struct):
    metrics: list[_Metric] = []


class _Resource(msgspec.Struct):
    scopeMetrics: list[_Scope] = []  # noqa: N815 - OTLP/JSON


class _Request(msgspec.Struct):
    resourceMetrics: list[_Resource] = []  # noqa: N815 - OTLP/JSON


_decoder = msgspec.json.Decoder(_Request)


def latest_metrics(body: bytes, sender: str | None) -> dict[str, dict[str, Any]]:
    """Gauges by worker id; nothing for a frame that is not OTLP.

    Args:
        body: the frame without its four-byte prefix.
        sender: the worker whose connection it came over: its frame speaks of that worker alone. None for ``/otel``.
    """
    try:
        request = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    found: dict[str, dict[str, Any]] = {}
    for key, point in _points(request):
        worker_id = _attribute(point, "worker.id")
        value = _number(point)
        if worker_id is not None and value is not None and sender in (None, worker_id):
            found.setdefault(worker_id, {"timestamp_ms": now_ms(), "runtime": "node"})[key] = value
    return found


def _points(request: _Request) -> Iterator[tuple[str, _Point]]:
    for resource in request.resourceMetrics:
        for scope in resource.scopeMetrics:
            for metric in scope.metrics:
                key = KEYS.get(metric.name.removeprefix(PREFIX)) if metric.name.startswith(PREFIX) else None
                points = metric.gauge or metric.sum
                if key is not None and points is not None:
                    yield from ((key, point) for point in points.dataPoints)


def _attribute(point: _Point, key: str) -> str | None:
    values = [found.value.stringValue for found in point.attributes if found.key == key and found.value]
    return values[-1] if values else None


def _number(point: _Point) -> float | int | None:
    value = point.asDouble if point.asDouble is not None else point.asInt
    try:
        if isinstance(value, str):
            return float(value) if point.asDouble is not None else int(value)
    except ValueError:
        return None
    return value
