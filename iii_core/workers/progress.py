"""What a worker's log says of the fetching of its image: little, and with numbers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from iii_core.images.port import Progress

HEARTBEAT: Final = 10.0
"""Seconds between two lines about the same stage."""


class ProgressNotes:
    """A `ProgressSink` that notes each stage once, and how far it has got every `HEARTBEAT` seconds."""

    def __init__(self, note: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._note = note
        self._clock = clock
        self._stage: str | None = None
        self._last = 0.0

    def __call__(self, step: Progress) -> None:
        """Take a step."""
        now = self._clock()
        if step.stage == self._stage and now - self._last < HEARTBEAT:
            return
        self._stage, self._last = step.stage, now
        self._note(f"{step.stage} {step.item}".rstrip() + _amount(step))


def _amount(step: Progress) -> str:
    if step.total:
        return f": {_megabytes(step.done or 0)} of {_megabytes(step.total)} MB"
    return f": {_megabytes(step.done)} MB" if step.done else ""


def _megabytes(count: int) -> str:
    return f"{count / 1_000_000:.1f}"
