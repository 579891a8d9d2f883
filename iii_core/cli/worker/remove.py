"""``iii worker remove``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from iii_core.cli.names import complete_worker
from iii_core.cli.output import say, say_error, success
from iii_core.cli.prompt import require_consent
from iii_core.cli.quick import QuickCommand
from iii_core.cli.state import state_of
from iii_core.cli.worker.rows import is_running, worker_rows
from iii_core.errors import EngineNotRunning, IIIError
from iii_core.project.locate import read_record
from iii_core.project.names import check_name

if TYPE_CHECKING:
    from iii_core.project.locate import Project

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command("remove", cls=QuickCommand)
def remove(
    context: typer.Context,
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="Names in config.yaml.", autocompletion=complete_worker)
    ],
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask, even if one is running.")] = False,
) -> None:
    """Stop workers, and remove them from config.yaml together with what they have written to their disks.

    Downloaded images and logs stay.
    """
    for name in names:
        check_name(name)
    project = state_of(context).project
    running = [row["name"] for row in worker_rows(project) if row["name"] in names and is_running(row)]
    if running:
        shown = ", ".join(running)
        require_consent(f"Running: {shown}. Stop and remove {'it' if len(running) == 1 else 'them'}?", assume_yes=yes)
    failed = sum(not _remove_one(project, name, number, len(names)) for number, name in enumerate(names, 1))
    if len(names) > 1:
        removed = len(names) - failed
        say(f"  Removed {removed}/{len(names)} workers." + (f" {failed} failed." if failed else ""))
    if failed:
        raise typer.Exit(1)


def _remove_one(project: Project, name: str, number: int, count: int) -> bool:
    if count > 1:
        say(f"  [{number}/{count}] Removing {name}...")
    try:
        unlocked = _perform(project, name)
    except IIIError as error:
        say_error(f"[{error.code}] {error.message}", error.hint)
        return False
    success(f"{name} removed from config.yaml" + (" and iii.lock" if unlocked else ""))
    return True


def _perform(project: Project, name: str) -> bool:
    """Remove it; true where iii.lock held it too."""
    if read_record(project) is not None:
        from iii_core.control.client import error_from, request

        try:
            row = request(project, "worker.remove", {"names": [name]})["workers"][0]
        except EngineNotRunning:
            pass  # it ended this very moment
        else:
            if "error" in row:
                raise error_from(row["error"])
            return bool(row.get("lock_changed"))
    from iii_core.cli.worker.offline import remove_offline

    return remove_offline(project, name)
