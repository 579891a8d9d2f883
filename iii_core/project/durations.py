"""Durations as people write them: the humantime grammar (spec worker-cli §6.2)."""

from __future__ import annotations

import re
from typing import Final

from iii_core.errors import InvalidValue

_NANOSECOND: Final = 1
_SECOND: Final = 1_000_000_000
_DAY: Final = 86_400 * _SECOND

_UNITS: Final = {
    unit: scale
    for scale, units in (
        (_NANOSECOND, "ns nsec nanos"),
        (1_000, "us usec µs micros"),
        (1_000_000, "ms msec millis"),
        (_SECOND, "s sec secs second seconds"),
        (60 * _SECOND, "m min mins minute minutes"),
        (3_600 * _SECOND, "h hr hrs hour hours"),
        (_DAY, "d day days"),
        (7 * _DAY, "w week weeks"),
        (2_630_016 * _SECOND, "M month months"),  # 30.44 days
        (31_557_600 * _SECOND, "y year years"),  # 365.25 days
    )
    for unit in units.split()
}
_GROUP = re.compile(r"\s*([0-9]{1,18})\s*([A-Za-zµ]+)")


def parse_duration(text: str) -> float:
    """Seconds of a duration such as ``30s``, ``1500ms``, ``1h 30m`` or ``2min5s``; ``0s`` is 0.

    Raises `InvalidValue` for a number without a unit, an unknown unit, a sign, a fraction, or nothing at all.
    """
    total = position = 0
    body = text.rstrip()
    while position < len(body):
        group = _GROUP.match(body, position)
        if group is None or group[2] not in _UNITS:
            raise _invalid(text)
        total += int(group[1]) * _UNITS[group[2]]
        position = group.end()
    if position == 0:
        raise _invalid(text)
    return total / _SECOND


def _invalid(text: str) -> InvalidValue:
    return InvalidValue(
        f"{text!r} is not a duration", hint="write whole numbers with units, such as 30s, 1500ms, 5m or '1h 30m'"
    )
