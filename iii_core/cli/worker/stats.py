"""``iii worker stats``."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from iii_core.cli.names import complete_worker
from iii_core.cli.output import data, data_json, is_terminal, printable, say
from iii_core.cli.quick import QuickCommand
from iii_core.cli.state import state_of
from iii_core.cli.table import table
from iii_core.project.names import check_name

if TYPE_CHECKING:
    from iii_core.project.locate import Project

Rows = list[dict[str, Any]]

BETWEEN: Final = 1.0
"""Seconds from one sample to the next: CPU time comes in steps of 10 ms."""
HEAD: Final = ("NAME", "STATUS", "CPU", "MEMORY", "PROCESSES", "DISK", "RECEIVED", "SENT")
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command("stats", cls=QuickCommand)
def stats(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Workers; all by default.", autocompletion=complete_worker),
    ] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until Ctrl-C.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON on stdout; with --follow a line for each sample.")
    ] = False,
) -> None:
    """Show what workers use: CPU (100% is one core), memory, processes, disk, and network since they were started.

    Memory is what a worker's processes have for themselves; disk is what its writable layers take on this machine;
    network is what went between it and the engine, and through its published ports. A sandbox is asked itself, so
    these are its own words where it is a virtual machine.
    """
    project = state_of(context).project
    wanted = [check_name(name) for name in names or ()]
    before = _sample(project, wanted)
    if not follow:
        time.sleep(BETWEEN)
        rows = with_cpu(before, _sample(project, wanted))
        data_json({"workers": rows}) if as_json else say(render(rows))
        return
    try:
        _follow(project, wanted, before, as_json=as_json)
    except KeyboardInterrupt:
        return


def _sample(project: Project, names: list[str]) -> Rows:
    from iii_core.control.client import request

    rows: Rows = request(project, "worker.stats", {"names": names})["workers"]
    return rows


def _follow(project: Project, names: list[str], before: Rows, *, as_json: bool) -> None:
    height = 0
    while True:
        time.sleep(BETWEEN)
        now = _sample(project, names)
        rows, before = with_cpu(before, now), now
        if as_json:
            data(json.dumps({"workers": rows}, ensure_ascii=False) + "\n")
            continue
        shown = render(rows)
        if is_terminal(sys.stderr):
            sys.stderr.write(f"\x1b[{height}F\x1b[J" if height else "")
            height = shown.count("\n") + 1
        say(shown)


def with_cpu(before: Rows, now: Rows) -> Rows:
    """The rows of ``now`` with ``cpu_percent``, from a sample of before; None where there is none of that run."""
    earlier = {row["name"]: row for row in before}
    return [{**row, "cpu_percent": _cpu_percent(earlier.get(row["name"]), row)} for row in now]


def _cpu_percent(before: dict[str, Any] | None, now: dict[str, Any]) -> float | None:
    if before is None or None in (before["at"], now["at"]) or now["at"] <= before["at"]:
        return None
    used = now["cpu_seconds"] - before["cpu_seconds"]
    return round(100 * used / (now["at"] - before["at"]), 1) if used >= 0 else None  # less: it was started anew


def render(rows: Rows) -> str:
    """As a table."""
    if not rows:
        return "  No workers that run in sandboxes."
    lines = [table(HEAD, [_cells(row) for row in rows])]
    lines += [f"  {row['name']}: {row['note']}" for row in rows if row["note"]]
    return printable("\n".join(lines))


def _cells(row: dict[str, Any]) -> list[str]:
    network: dict[str, int] = row["network"] or {}
    cpu, processes = row["cpu_percent"], row["processes"]
    return [
        row["name"],
        row["status"],
        "-" if cpu is None else f"{cpu:.1f}%",
        _of(row["memory"], row["memory_limit"]),
        "-" if processes is None else str(processes),
        _of(row["disk"], row["disk_limit"]),
        size(network.get("received")),
        size(network.get("sent")),
    ]


def _of(used: int | None, limit: int | None) -> str:
    return size(used) if limit is None else f"{size(used)} / {size(limit)}"


def size(count: float | None) -> str:
    """Bytes for people: three digits and a unit of 1024; ``-`` for None."""
    if count is None:
        return "-"
    unit = 0
    while count >= 999.5 and unit < len(_UNITS) - 1:
        count /= 1024
        unit += 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 or count >= 99.95 else f"{count:.1f} {_UNITS[unit]}"
