"""``iii worker``: the workers of this project."""

from __future__ import annotations

import typer

from iii_core.cli.lazy import Lazy, LazyGroup, from_module

_HERE = "iii_core.cli.worker"


class WorkerGroup(LazyGroup):
    """Each command in a module of its own."""

    lazy = {  # noqa: RUF012 - declared as a ClassVar by the base
        "add": Lazy("Add workers to this project, and start them", from_module(f"{_HERE}.add")),
        "list": Lazy("List the workers of this project and their state", from_module(f"{_HERE}.list")),
        "start": Lazy("Start a worker", from_module(f"{_HERE}.lifecycle", "start_app")),
        "stop": Lazy("Stop a worker", from_module(f"{_HERE}.lifecycle", "stop_app")),
        "restart": Lazy("Stop a worker and start it again", from_module(f"{_HERE}.lifecycle", "restart_app")),
        "status": Lazy("Show one worker, also while it starts", from_module(f"{_HERE}.status")),
        "stats": Lazy("Show what workers use: CPU, memory, disk, network", from_module(f"{_HERE}.stats")),
        "logs": Lazy("Show what a worker has printed", from_module(f"{_HERE}.logs")),
        "exec": Lazy("Run a command inside a worker's sandbox", from_module(f"{_HERE}.exec")),
        "cp": Lazy("Copy files into a worker's sandbox, or out of it", from_module(f"{_HERE}.cp")),
        "snapshot": Lazy("Save a running worker, to start from there", from_module(f"{_HERE}.snapshot")),
        "remove": Lazy("Remove workers from this project", from_module(f"{_HERE}.remove")),
        "reinstall": Lazy("Fetch workers again and restart them", from_module(f"{_HERE}.add", "reinstall_app")),
    }


app = typer.Typer(add_completion=False, cls=WorkerGroup, rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def worker() -> None:
    """Add, run and inspect the workers of this project."""
