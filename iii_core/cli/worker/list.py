"""``iii worker list``: works with and without an engine."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from iii_core.cli.elsewhere import wrong_folder
from iii_core.cli.output import data_json, say
from iii_core.cli.quick import QuickCommand
from iii_core.cli.state import state_of
from iii_core.cli.table import table
from iii_core.cli.worker.rows import all_rows
from iii_core.project.locate import read_record

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command("list", cls=QuickCommand)
def list_workers(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """List the workers of this project with their state, and those that connected to its engine from outside.

    Without a running engine every worker is stopped.
    """
    state = state_of(context)
    declared, external = all_rows(state.project)
    rows = [*declared, *external]
    if as_json:
        data_json({"workers": rows})
    elif not rows:
        note = wrong_folder(state)
        say(f"  No workers: {note}" if note else "  No workers. Use `iii worker add` to get started.")
    else:
        head = ["NAME", "TYPE", "VERSION", "PID", "STATUS"]
        say(table(head, [_cells(row) for row in rows], widths=(25, 10, 10, 10)))
        if read_record(state.project) is None:
            say("  The engine is not running. Start it with `iii`.")


def _cells(row: dict[str, Any]) -> list[str]:
    status = str(row["status"])
    if row.get("isolation") and status == "running":
        status += f" ({row['isolation']})"
    if row.get("note"):
        note = " ".join(str(row["note"]).split())
        status += f" - {note if len(note) <= 80 else note[:79] + '…'}"
    return [row["name"], row["type"], row.get("version") or "-", str(row.get("pid") or "-"), status]
