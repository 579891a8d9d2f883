"""Run all benchmarks of this folder (or those named), print a table, and write ``build/bench.json``.

Each benchmark runs in a process of its own, one after the other. The exit code says whether all of them ran, not
whether their aims are met: a shared machine is no judge of that, a reader of the table is.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from iiitools.bench import Row

HERE = Path(__file__).resolve().parent
RESULT = HERE.parent / "build" / "bench.json"
TIMEOUT = 600.0  # seconds for one benchmark


def main() -> int:
    names = sorted(path.stem for path in HERE.glob("*.py") if path != Path(__file__).resolve())
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"benchmarks to run, of: {', '.join(names)}")
    parser.add_argument("--measure", metavar="NAME", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        return measure_here(arguments.measure)
    unknown = sorted(set(arguments.names) - set(names))
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}")

    rows: list[Row] = []
    failed: list[str] = []
    for name in arguments.names or names:
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        measured = measure_in_process(name)
        if measured is None:
            failed.append(name)
        else:
            rows += measured
    write_result(rows)
    print(render(rows))
    print(f"{conditions()}; written to {RESULT.relative_to(HERE.parent)}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def measure_here(name: str) -> int:
    """Run one benchmark in this process and print its rows as JSON on stdout, which is the benchmark's no more."""
    result = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    rows: list[Row] = importlib.import_module(name).measure()
    with result:
        result.write(msgspec.json.encode(rows))
    return 0


def measure_in_process(name: str) -> list[Row] | None:
    """The rows of one benchmark, or None if it failed (its own output says why)."""
    command = [sys.executable, __file__, "--measure", name]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=TIMEOUT, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return None
    return msgspec.json.decode(done.stdout, type=list[Row])


def write_result(rows: list[Row]) -> None:
    """Write the rows, with what is derived from them, as JSON."""
    document = {
        "conditions": conditions(),
        "rows": [{**msgspec.structs.asdict(row), "ratio": row.ratio, "met": row.met} for row in rows],
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


def conditions() -> str:
    """The machine and its load, in one line."""
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return f"Python {platform.python_version()}, {os.cpu_count()} CPUs, load average {load}, {when}"


def render(rows: list[Row]) -> str:
    """The table, one line per row."""
    header = ("name", "ours", "reference", "ratio", "aim", "met", "reference is", "conditions")
    lines = [header, *map(cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines)


def cells(row: Row) -> tuple[str, ...]:
    """A row's cells as text."""
    sign = "≤" if row.better == "lower" else "≥"
    return (
        row.name,
        f"{row.ours:.4g} {row.unit}",
        f"{row.reference:.4g} {row.unit}",
        f"{row.ratio:.3g}",
        f"{sign} {row.aim:g}",
        "yes" if row.met else "no",
        row.reference_name,
        row.conditions,
    )


if __name__ == "__main__":
    sys.exit(main())
