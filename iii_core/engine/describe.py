"""What a worker says of itself, made safe to store, log and print (spec protocol §3.2)."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iii_core.engine.endpoint import WorkerRecord

DESCRIPTION_LENGTH: Final = 280
TEXT_LENGTH: Final = 256
NEW_SHAPES: Final = (0, 21)
"""First SDK generation whose users expect discovery in its new shapes (spec protocol §3.5)."""

_HIDDEN: Final = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs"})
_VERSION: Final = re.compile(r"v?(\d{1,6})\.(\d{1,6})")
_TELEMETRY_KEYS: Final = ("language", "project_name", "framework")


def clean(text: str, length: int = TEXT_LENGTH) -> str:
    """Text without control, bidi and other invisible characters, cut at ``length`` characters."""
    cut = text[: length * 2]
    return "".join(char for char in cut if unicodedata.category(char) not in _HIDDEN)[:length]


def describe(record: WorkerRecord, data: Mapping[str, Any]) -> None:
    """Take over a worker's self-description. What is missing, null or of a wrong type clears nothing."""
    for key in ("name", "os", "isolation", "version", "runtime"):
        if isinstance(value := data.get(key), str):
            setattr(record, key, clean(value) or None)
    if isinstance(value := data.get("description"), str):
        record.description = clean(value, DESCRIPTION_LENGTH) or None
    if type(pid := data.get("pid")) is int and 0 < pid < 2**63:
        record.pid = pid
    if isinstance(telemetry := data.get("telemetry"), dict):
        given = cast("dict[str, object]", telemetry)
        record.telemetry = {key: clean(text) for key in _TELEMETRY_KEYS if isinstance(text := given.get(key), str)}
    record.runtime = record.runtime or "unknown"


def wants_new_shapes(record: WorkerRecord) -> bool:
    """Whether discovery answers this caller in the shapes of SDKs from 0.21 on; else in the seeds' shapes."""
    match = _VERSION.match(record.version or "")
    return match is not None and (int(match[1]), int(match[2])) >= NEW_SHAPES
