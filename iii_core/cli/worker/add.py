"""``iii worker add`` and ``reinstall``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from iii_core.cli.names import complete_worker
from iii_core.cli.output import say, say_error, success, warn
from iii_core.cli.progress import ProgressView, megabytes
from iii_core.cli.quick import QuickCommand
from iii_core.cli.state import state_of
from iii_core.errors import EngineNotRunning, StartTimeout
from iii_core.project.locate import read_record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from iii_core.cli.state import State

Sources = Annotated[
    list[str],
    typer.Argument(metavar="SOURCE...", help="Images such as ghcr.io/my-org/my-worker:1.0, or what a plugin accepts."),
]
ResetConfig = Annotated[
    bool, typer.Option("--reset-config", help="Forget what config.yaml says of the worker, and begin with defaults.")
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Return at once, before the worker is ready.")]
EXAMPLES: Final = """\b
Examples:
  iii worker add ghcr.io/my-org/my-worker:1.0
  iii worker add localhost:5050/my-worker:latest
  iii worker add docker-archive:my-worker.tar        made by `docker save`
"""

app = typer.Typer(rich_markup_mode=None, add_completion=False)
reinstall_app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command("add", cls=QuickCommand, epilog=EXAMPLES)
def add(
    context: typer.Context,
    sources: Sources,
    force: Annotated[
        bool, typer.Option("-f", "--force", help="Ask the registry again for what is there already.")
    ] = False,
    reset_config: ResetConfig = False,
    no_wait: NoWait = False,
    _yes: Annotated[bool, typer.Option("-y", "--yes", hidden=True)] = False,
) -> None:
    """Fetch workers, write them into config.yaml, and start them if the engine runs.

    What you have written in config.yaml stays. Several workers are added one by one: a failed one does not undo the
    others, and nobody waits until they are ready.
    """
    _add_all(state_of(context), sources, force=force, reset_config=reset_config, wait=not no_wait)


@reinstall_app.command("reinstall", cls=QuickCommand)
def reinstall(
    context: typer.Context,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...", help="Names of workers in config.yaml, or sources.", autocompletion=complete_worker
        ),
    ],
    reset_config: ResetConfig = False,
    no_wait: NoWait = False,
) -> None:
    """Fetch workers again from where they came from, pin what is there now, and restart them.

    The same as `iii worker add --force`.
    """
    _add_all(state_of(context), names, force=True, verb="Reinstalling", reset_config=reset_config, wait=not no_wait)


def _add_all(
    state: State, sources: Sequence[str], *, force: bool, reset_config: bool, wait: bool, verb: str = "Adding"
) -> None:
    many = len(sources) > 1
    failed = 0
    for number, source in enumerate(sources, 1):
        say(f"  [{number}/{len(sources)}] {verb} {source}..." if many else f"  {verb} {source}...")
        begun = time.monotonic()
        options = {"force": force, "reset_config": reset_config, "wait": wait and not many}
        row = _add_one(state, source, options)
        if "error" in row:
            failed += 1
            say_error(f"[{row['error']['code']}] {row['error']['message']}", row["error"].get("hint"))
        elif many:
            success(row["name"])
        else:
            failed += not _report(row, time.monotonic() - begun)
    if many:
        added = len(sources) - failed
        say(f"  Added {added}/{len(sources)} workers." + (f" {failed} failed." if failed else ""))
    if failed:
        raise typer.Exit(1)


def _add_one(state: State, source: str, options: dict[str, Any]) -> dict[str, Any]:
    """By the engine where one runs, else right here."""
    with ProgressView() as view:
        if read_record(state.project) is not None:
            from iii_core.control.client import request

            try:
                answer = request(state.project, "worker.add", {"sources": [source], **options}, on_progress=view)
            except EngineNotRunning:
                pass  # it ended this very moment
            else:
                row: dict[str, Any] = answer["workers"][0]
                return {**row, "waited": options["wait"]}
        from iii_core.cli.worker.offline import add_offline

        return add_offline(state, source, force=options["force"], reset_config=options["reset_config"], progress=view)


def _report(row: dict[str, Any], seconds: float) -> bool:
    """Say what was done; false where the worker cannot run. One that takes long may still become ready."""
    facts = [("Name", row["name"]), ("Version", row.get("version")), ("Description", row.get("description"))]
    if not row.get("manifest"):
        say("  Image pulled (no manifest found)")
    for label, value in [*facts, ("Digest", row["digest"]), ("Size", megabytes(row["size"]))]:
        if value:
            say(f"  {label}: {value}")
    verb = {"added": "added to", "unchanged": "unchanged in"}.get(row["config"], "updated in")
    success(f"Worker {row['name']} {verb} config.yaml")
    if row.get("replaces"):
        say(f"  It came from {row['replaces']} before. Its settings were kept; --reset-config forgets them.")
    if row.get("lock_changed"):
        success("Wrote iii.lock")
    if row.get("snapshot_dropped"):
        say("  Its snapshot was of what it was before, and is deleted.")
    if row.get("offline"):
        say("  The engine is not running. Start it with `iii`, and the worker starts with it.")
    elif row.get("ready"):
        success(f"ready in {seconds:.1f}s")
    elif row.get("waited"):
        reason: dict[str, Any] = row["not_ready"]
        if reason["code"] != StartTimeout.default_code:
            say_error(f"[{reason['code']}] added, but it does not run: {reason['message']}", reason.get("hint"))
            return False
        warn(f"not ready: {reason['message']}", reason.get("hint"))
        say(f"  Watch it with `iii worker status {row['name']}` and `iii worker logs {row['name']} -f`.")
    return True
