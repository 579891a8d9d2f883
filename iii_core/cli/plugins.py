"""``iii plugins``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from iii_core.cli.output import data_json, say, say_error, warn
from iii_core.cli.quick import QuickCommand
from iii_core.cli.state import state_of

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, no_args_is_help=True, help="See which plugins are installed."
)


@app.callback()
def plugins() -> None:
    """See which plugins are installed."""


@app.command("list", cls=QuickCommand)
def list_plugins(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """List installed plugins, what they provide, and what is wrong with them."""
    rows = _rows(context)
    if as_json:
        data_json({"plugins": rows})
        return
    if not rows:
        say("  No plugins installed.")
        return
    from iii_core.cli.table import table

    say(table(["NAME", "DISTRIBUTION", "VERSION", "STATUS", "PROVIDES"], [_cells(row) for row in rows]))
    for row in rows:
        if row["error"]:
            say_error(f"{row['name']}: {row['error']}")
        for trouble in row["warnings"]:
            warn(f"{row['name']}: {trouble}")


def _rows(context: typer.Context) -> list[dict[str, Any]]:
    from iii_core.cli.conflicts import conflicts
    from iii_core.host import HOOK_OF_KIND

    host = state_of(context).plugins
    provided: dict[tuple[str, str], list[dict[str, str]]] = {}
    for kind in HOOK_OF_KIND:
        for declared in host.declared(kind):
            key = (declared.plugin.name, declared.plugin.distribution)
            provided.setdefault(key, []).append({"kind": kind.__name__, "name": declared.record.name})
    troubles: dict[tuple[str, str], list[str]] = {}
    for conflict in conflicts(host):
        troubles.setdefault((conflict.plugin.name, conflict.plugin.distribution), []).append(conflict.trouble)
    return [
        {
            "name": info.name,
            "distribution": info.distribution,
            "version": info.version,
            "status": info.status,
            "error": info.error,
            "warnings": troubles.get((info.name, info.distribution), []),
            "provides": provided.get((info.name, info.distribution), []),
        }
        for info in host.plugins
    ]


def _cells(row: dict[str, Any]) -> list[str]:
    provides = ", ".join(f"{item['kind']} {item['name']}" for item in row["provides"]) or "-"
    status = "warning" if row["warnings"] and not row["error"] else row["status"]
    return [row["name"], row["distribution"], row["version"], status, provides]
