"""``iii worker list``: works with and without an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from iii_core.cli.output import data_json, say
from iii_core.cli.quick import QuickCommand
from iii_core.cli.state import state_of
from iii_core.errors import EngineNotRunning

if TYPE_CHECKING:
    from iii_core.project.locate import Project

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("list", cls=QuickCommand)
def list_workers(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """List the workers of this project with their state.

    Without a running engine every worker is shown as stopped.
    """
    rows = worker_rows(state_of(context).project)
    if as_json:
        data_json({"workers": rows})
    elif not rows:
        say("  No workers. Use `iii worker add` to get started.")
    else:
        from iii_core.cli.table import table

        head = ["NAME", "TYPE", "VERSION", "PID", "STATUS"]
        say(table(head, [_cells(row) for row in rows], widths=(25, 10, 10, 10)))


def worker_rows(project: Project) -> list[dict[str, Any]]:
    """One row per declared worker: from the engine if one runs, else from config.yaml, all stopped."""
    from iii_core.project.locate import read_record

    if read_record(project) is not None:
        from iii_core.control.client import request

        try:
            rows: list[dict[str, Any]] = request(project, "worker.list")["workers"]
            return rows
        except EngineNotRunning:
            pass  # it ended this very moment
    return _declared_rows(project)


def _declared_rows(project: Project) -> list[dict[str, Any]]:
    from iii_core.project.config import load_config

    if not project.config_path.exists():
        return []
    versions = _locked_versions(project)
    return [
        {
            "name": entry.name,
            "type": entry.kind,
            "version": versions.get(entry.name),
            "pid": None,
            "status": "stopped",
            "isolation": None,
            "backend": None,
            "note": None,
        }
        for entry in load_config(project).workers
    ]


def _locked_versions(project: Project) -> dict[str, str]:
    if not project.lock_path.exists():
        return {}
    from iii_core.project.lock import load_lock

    return {name: entry.version for name, entry in load_lock(project).workers.items()}


def _cells(row: dict[str, Any]) -> list[str]:
    status = str(row["status"])
    if row.get("isolation") and status == "running":
        status += f" ({row['isolation']})"
    if row.get("note"):
        note = " ".join(str(row["note"]).split())
        status += f" - {note if len(note) <= 80 else note[:79] + '…'}"
    return [row["name"], row["type"], row.get("version") or "-", str(row.get("pid") or "-"), status]
