"""``iii worker start``, ``stop`` and ``restart``."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from iii_core.cli.names import complete_worker
from iii_core.cli.output import say, success, warn
from iii_core.cli.prompt import require_consent
from iii_core.cli.quick import QuickCommand
from iii_core.cli.state import state_of
from iii_core.cli.worker.rows import find_row
from iii_core.control.client import request
from iii_core.errors import StartTimeout
from iii_core.project.names import check_name

Name = Annotated[str, typer.Argument(metavar="NAME", help="The worker.", autocompletion=complete_worker)]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Do not wait until the worker is ready.")]

start_app = typer.Typer(rich_markup_mode=None, add_completion=False)
stop_app = typer.Typer(rich_markup_mode=None, add_completion=False)
restart_app = typer.Typer(rich_markup_mode=None, add_completion=False)


@start_app.command("start", cls=QuickCommand)
def start(context: typer.Context, name: Name, no_wait: NoWait = False) -> None:
    """Start a stopped worker; a running one is left alone."""
    _begin(context, "worker.start", check_name(name), wait=not no_wait)


@restart_app.command("restart", cls=QuickCommand)
def restart(context: typer.Context, name: Name, no_wait: NoWait = False) -> None:
    """Stop a worker, then start it."""
    _begin(context, "worker.restart", check_name(name), wait=not no_wait)


@stop_app.command("stop", cls=QuickCommand)
def stop(
    context: typer.Context,
    name: Name,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
) -> None:
    """Stop a running worker without removing it. It starts again with the engine, or by `iii worker start`."""
    project = state_of(context).project
    row = find_row(project, check_name(name))
    if row["status"] in ("stopped", "failed"):
        success(f"{name} already stopped")
        return
    require_consent(f"Stop worker '{name}'?", assume_yes=yes)
    say(f"  Stopping {name}...")
    request(project, "worker.stop", {"name": name})
    success(f"{name} stopped")


def _begin(context: typer.Context, op: str, name: str, *, wait: bool) -> None:
    say(f"  {'Starting' if op == 'worker.start' else 'Restarting'} {name}...")
    begun = time.monotonic()
    try:
        facts: dict[str, Any] = request(state_of(context).project, op, {"name": name, "wait": wait})
    except StartTimeout as error:  # it goes on starting; scripts that must know use `iii worker status`
        warn(error.message, error.hint)
        return
    started = f"{name} started" + (f" (pid: {facts['pid']})" if facts.get("pid") else "")
    success(f"{started}, ready in {time.monotonic() - begun:.1f}s" if wait else started)
