"""What works with which release of the SDK: the results of ``tests/integration/sdk``, and the table made from them.

The tests write ``build/sdk-matrix.json`` when all of them have run; ``python -m iiitools.sdk_table`` prints it as
Markdown.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from iiitools.sdks import ROOT, SDKS

MATRIX = ROOT / "build" / "sdk-matrix.json"

Outcome = Literal["passed", "failed", "unsupported"]
"""``unsupported``: the release itself cannot do it; ``reason`` says what it lacks."""

_WORST: tuple[Outcome, ...] = ("failed", "unsupported", "passed")
_MARKS: dict[Outcome, str] = {"passed": "yes", "failed": "**no**", "unsupported": "n/a"}


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One test.

    Attributes:
        group: the test's file, such as ``calls``.
        case: what was tried, in words.
        sdks: labels of the releases that took part.
        reason: why a case is unsupported.
    """

    group: str
    case: str
    sdks: tuple[str, ...]
    outcome: Outcome
    reason: str = ""


class Matrix(msgspec.Struct, frozen=True, kw_only=True):
    """All results of one run; ``engine`` is the version of this project."""

    engine: str
    sdks: tuple[str, ...]
    results: tuple[Result, ...]


def save(results: Iterable[Result], engine: str, path: Path = MATRIX) -> None:
    """Write the results in order of group and case, so that equal runs give equal files."""
    ordered = sorted(results, key=lambda result: (result.group, result.case, result.sdks))
    matrix = Matrix(engine=engine, sdks=tuple(sdk.label for sdk in SDKS), results=tuple(ordered))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(matrix), indent=1) + b"\n")


def load(path: Path = MATRIX) -> Matrix:
    """Read a matrix. Raises ``OSError`` and ``msgspec.ValidationError``."""
    return msgspec.json.decode(path.read_bytes(), type=Matrix)


def render(matrix: Matrix) -> str:
    """A Markdown table: a row per case, a column per release, and below it why something is ``n/a``."""
    lines = [
        "| case | " + " | ".join(label.replace("-", " ") for label in matrix.sdks) + " |",
        "|---" * (len(matrix.sdks) + 1) + "|",
    ]
    reasons: list[str] = []
    for group, case in sorted({(result.group, result.case) for result in matrix.results}):
        found = [result for result in matrix.results if (result.group, result.case) == (group, case)]
        cells = [_cell([result for result in found if label in result.sdks], reasons) for label in matrix.sdks]
        lines.append(f"| {group}: {case} | " + " | ".join(cells) + " |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)]
    return "\n".join([*lines, *(["", "n/a:", "", *notes] if notes else [])]) + "\n"


def _cell(results: Sequence[Result], reasons: list[str]) -> str:
    """The worst outcome of a case for one release; a new reason is added to ``reasons``."""
    for outcome in _WORST:
        for result in results:
            if result.outcome == outcome:
                return _MARKS[outcome] + (f" ({_number(result.reason, reasons)})" if result.reason else "")
    return ""


def _number(reason: str, reasons: list[str]) -> int:
    if reason not in reasons:
        reasons.append(reason)
    return reasons.index(reason) + 1


def main(arguments: Sequence[str]) -> int:
    """Print the table of the file that is named, or of the last run; 1 where there is none."""
    path = Path(arguments[0]) if arguments else MATRIX
    try:
        matrix = load(path)
    except (OSError, msgspec.ValidationError) as error:
        print(f"sdk_table: {path}: {error}; `pytest tests/integration/sdk` writes it", file=sys.stderr)
        return 1
    print(render(matrix), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
