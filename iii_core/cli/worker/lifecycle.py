"""``iii worker start``, ``stop`` and ``restart``."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from iii_core.cli.names import complete_worker
from iii_core.cli.numbers import MAX_PORT, parse_number
from iii_core.cli.output import say, success, warn
from iii_core.cli.prompt import require_consent
from iii_core.cli.quick import QuickCommand
from iii_core.cli.state import state_of
from iii_core.cli.worker.rows import find_row, require_engine
from iii_core.control.client import request
from iii_core.errors import EngineNotRunning, InvalidValue, StartTimeout
from iii_core.project.locate import read_record
from iii_core.project.names import check_name

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of the worker in config.yaml.", autocompletion=complete_worker)
]
Cold = Annotated[bool, typer.Option("--cold", help="Start it afresh, not from its snapshot.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Return at once, before the worker is ready.")]
Port = Annotated[
    str | None, typer.Option("--port", metavar="PORT", help="Make sure that the engine is the one at this port.")
]
# Of the original's worker programs on the host, which take it as an argument; none of ours runs there.
Config = Annotated[str | None, typer.Option("--config", metavar="FILE", hidden=True)]

start_app = typer.Typer(rich_markup_mode=None, add_completion=False)
stop_app = typer.Typer(rich_markup_mode=None, add_completion=False)
restart_app = typer.Typer(rich_markup_mode=None, add_completion=False)


@start_app.command("start", cls=QuickCommand)
def start(
    context: typer.Context,
    name: Name,
    no_wait: NoWait = False,
    cold: Cold = False,
    port: Port = None,
    config: Config = None,
) -> None:
    """Start a stopped worker, and wait until it is ready; a running one is left alone.

    It is ready when it has connected to the engine. After two minutes the command stops waiting, and warns; after three
    failed runs it ends with an error, and the worker is still tried again. If it has a snapshot (`iii worker snapshot`)
    that fits, it wakes up from there.
    """
    _check_target(context, name, port, config)
    _begin(context, "worker.start", name, wait=not no_wait, cold=cold)


@restart_app.command("restart", cls=QuickCommand)
def restart(
    context: typer.Context,
    name: Name,
    no_wait: NoWait = False,
    cold: Cold = False,
    port: Port = None,
    config: Config = None,
) -> None:
    """Stop a worker, then start it with what config.yaml says now, and wait until it is ready.

    If it has a snapshot (`iii worker snapshot`) that fits, it wakes up from there.
    """
    _check_target(context, name, port, config)
    _begin(context, "worker.restart", name, wait=not no_wait, cold=cold)


@stop_app.command("stop", cls=QuickCommand)
def stop(
    context: typer.Context,
    name: Name,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Agree beforehand, as scripts must.")] = False,
) -> None:
    """Stop a running worker without removing it. It starts again with the engine, or with `iii worker start`."""
    project = state_of(context).project
    row = find_row(project, check_name(name))
    if row["type"] == "engine":
        raise InvalidValue(f"cannot stop {name!r}: it lives inside the engine", hint="remove it from config.yaml")
    if row["status"] in ("stopped", "failed"):
        success(f"{name} already stopped")
        return
    require_consent(f"Stop worker '{name}'?", assume_yes=yes)
    say(f"  Stopping {name}...")
    request(project, "worker.stop", {"name": name})
    success(f"{name} stopped")


def _check_target(context: typer.Context, name: str, port: str | None, config: str | None) -> None:
    check_name(name)
    wanted = parse_number(port, "--port", MAX_PORT)
    record = read_record(state_of(context).project)
    if record is not None and wanted not in (None, record.port):
        raise EngineNotRunning(
            f"the engine of this project is at port {record.port}, not {wanted}",
            hint="leave --port out: the engine of a project is found by its folder",
        )
    if config is not None:
        warn(f"--config is not used: {name} runs in a sandbox and gets what config.yaml says")


def _begin(context: typer.Context, op: str, name: str, *, wait: bool, cold: bool) -> None:
    project = state_of(context).project
    require_engine(project, name)
    row = find_row(project, name)
    if row["type"] == "engine":
        say(f"  {name} lives inside the engine, and runs as long as the engine does.")
        return
    if op == "worker.start" and row["status"] == "running":
        success(f"{name} already running (pid: {row['pid']})")
        if cold:
            say(f"  `iii worker restart {name} --cold` starts it afresh.")
        return
    say(f"  {'Starting' if op == 'worker.start' else 'Restarting'} {name}...")
    begun = time.monotonic()
    try:
        facts: dict[str, Any] = request(project, op, {"name": name, "wait": wait, "cold": cold})
    except StartTimeout as error:  # it goes on starting; scripts that must know use `iii worker status`
        warn(error.message, error.hint)
        return
    started = f"{name} started" + (f" (pid: {facts['pid']})" if facts.get("pid") else "")
    woken = " from its snapshot" if facts.get("warm") else ""
    success(f"{started}, ready in {time.monotonic() - begun:.1f}s{woken}" if wait else started)
