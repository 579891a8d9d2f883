"""``iii worker snapshot``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iii_core.cli.names import complete_worker
from iii_core.cli.output import data_json, say, success
from iii_core.cli.quick import QuickCommand
from iii_core.cli.state import state_of
from iii_core.cli.worker.rows import find_row, require_engine
from iii_core.errors import EngineNotRunning, InvalidValue
from iii_core.project.locate import read_record
from iii_core.project.names import check_name

if TYPE_CHECKING:
    from iii_core.project.locate import Project

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command("snapshot", cls=QuickCommand)
def snapshot(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the worker in config.yaml.", autocompletion=complete_worker)
    ],
    remove: Annotated[bool, typer.Option("--remove", help="Delete its snapshot: it starts afresh again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Save a running worker as it is now, memory and files, so that it starts from there.

    From then on `iii worker start` and `restart` and the engine wake it up instead of booting it, as long as image,
    settings, limits and versions are the same; `--cold` does not. Each time its files are again those of the snapshot:
    what it wrote since then is given up. One that failed by itself is started afresh.

    The worker stands still for a moment and connects again; calls under way fail. A new snapshot takes the old one's
    place. The sandbox backend must support it: those of virtual machines do.

    A snapshot holds all that was in the worker's memory, secrets among it. Its files are for your user alone.
    """
    project = state_of(context).project
    facts = _remove(project, check_name(name)) if remove else _save(project, check_name(name), quiet=as_json)
    if as_json:
        data_json(facts)
    elif remove:
        success(f"the snapshot of {name} is deleted" if facts["removed"] else f"{name} has no snapshot")


def _save(project: Project, name: str, *, quiet: bool) -> dict[str, Any]:
    from iii_core.cli.progress import megabytes
    from iii_core.control.client import request

    require_engine(project, name)
    _require_sandbox(find_row(project, name))
    if not quiet:
        say(f"  Saving {name}...")
    begun = time.monotonic()
    facts: dict[str, Any] = request(project, "worker.snapshot", {"name": name})
    if not quiet:
        success(f"{name} saved ({megabytes(facts['size'])}), ready again after {time.monotonic() - begun:.1f}s")
        say("  It holds the worker's memory, secrets among it. Starting from it gives up what was written since:")
        say(f"  `--cold` starts the worker without, `iii worker snapshot {name} --remove` deletes it.")
    return facts


def _remove(project: Project, name: str) -> dict[str, Any]:
    _require_sandbox(find_row(project, name))
    if read_record(project) is not None:
        from iii_core.control.client import request

        try:
            facts: dict[str, Any] = request(project, "worker.snapshot", {"name": name, "remove": True})
            return facts
        except EngineNotRunning:
            pass  # it ended this very moment
    from iii_core.cli.worker.offline import drop_snapshot_offline

    return {"name": name, "removed": drop_snapshot_offline(project, name)}


def _require_sandbox(row: dict[str, Any]) -> None:
    if row["type"] == "engine":
        raise InvalidValue(
            f"{row['name']!r} lives inside the engine, and has nothing to save", hint="it starts with the engine"
        )
