"""Plain tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, widths: Sequence[int] = ()) -> str:
    """Rows below an underlined head, indented by two; columns at least ``widths`` wide, the last one open."""
    lines = [head, ["-" * len(title) for title in head], *rows]
    columns = range(len(head) - 1)
    least = [*widths, *(0 for _ in head)]
    fit = [max(least[column], *(len(line[column]) for line in lines)) for column in columns]
    return "\n".join(
        ("  " + " ".join([*(line[column].ljust(fit[column]) for column in columns), line[-1]])).rstrip()
        for line in lines
    )
