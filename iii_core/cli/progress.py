"""Progress of long work: one redrawn line on a terminal, a line per step elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from iii_core.cli.output import is_terminal, printable, say

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

REDRAW: Final = 0.1
HEARTBEAT: Final = 3.0
_BAR: Final = 24


class ProgressView:
    """Shows steps as ``{"stage", "item", "done", "total"}`` (`iii_core.images.port.Progress`), items of a stage summed.

    A context manager: what is on the line is wiped at the end.
    """

    def __init__(self) -> None:
        self._live = is_terminal(sys.stderr)
        self._items: dict[str, dict[str, tuple[int, int | None]]] = {}
        self._said: str | None = None
        self._last = float("-inf")

    def __enter__(self) -> ProgressView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            _draw("")

    def __call__(self, step: Mapping[str, Any]) -> None:
        """Take a step; drawing is rationed."""
        stage, item = str(step.get("stage", "")), str(step.get("item") or "")
        self._items.setdefault(stage, {})[item] = (_count(step.get("done")) or 0, _count(step.get("total")))
        new = stage != self._said
        now = time.monotonic()
        if not new and now - self._last < (REDRAW if self._live else HEARTBEAT):
            return
        self._said, self._last = stage, now
        if self._live:
            _draw(self._line(stage, item, bar=True))
        else:
            say(f"  {self._line(stage, item, bar=False)}")

    def _line(self, stage: str, item: str, *, bar: bool) -> str:
        items = self._items[stage]
        done = sum(part for part, _ in items.values())
        sizes = [total for _, total in items.values() if total is not None]
        label = f"{stage} {item}".strip() if len(items) == 1 else f"{stage} {len(items)} parts"
        if not done and not sizes:
            return f"{label}..."
        if not sizes:
            return f"{label}: {megabytes(done)}"
        total = max(sum(sizes), 1)
        drawn = "#" * min(_BAR, done * _BAR // total)
        gauge = f"[{drawn:<{_BAR}}] " if bar else ""
        return f"{label}: {gauge}{megabytes(done)} of {megabytes(total)}"


def megabytes(count: int) -> str:
    """A size for people."""
    return f"{count / 1_000_000:.1f} MB"


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None


def _draw(line: str) -> None:
    width = shutil.get_terminal_size().columns - 1
    sys.stderr.write("\r\x1b[K" + printable(line)[:width])
    sys.stderr.flush()
