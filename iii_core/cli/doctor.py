"""``iii doctor``."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final

import typer

from iii_core.cli.output import data_json, say, say_styled
from iii_core.cli.quick import QuickCommand
from iii_core.cli.state import state_of

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from iii_core.app.doctor import Examined
    from iii_core.project.locate import Project
    from iii_core.records import OpenContext

MARKS: Final = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "failed": ("✗", "red")}

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command("doctor", cls=QuickCommand)
def doctor(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Find what is missing on this machine and in this project, why it matters, and the command that puts it right.

    Sandboxes are tried out, which may take half a minute. Nothing is changed, and a running engine is not disturbed.
    The exit code is 1 if something has failed; warnings are no failures.
    """
    rows = _examine(context)
    failed = sum(row.result.status == "failed" for row in rows)
    if as_json:
        data_json({"ok": not failed, "checks": [row.as_json() for row in rows]})
    else:
        _show(rows)
        warnings = sum(row.result.status == "warning" for row in rows)
        say(f"  {len(rows)} checks: {failed} failed, {warnings} with a warning.")
    if failed:
        raise typer.Exit(1)


def _examine(context: typer.Context) -> list[Examined]:
    from iii_core.app.doctor import examine
    from iii_core.cli.checks import core_checks
    from iii_core.cli.running import run_async

    state = state_of(context)
    with doctor_folders(state.project) as scratch:
        return run_async(partial(examine, core_checks(state.project, state.plugins), state.plugins, scratch))


@contextmanager
def doctor_folders(project: Project) -> Generator[OpenContext]:
    """Folders for the trials, also where the usual place will not do: that is a row, and not the end."""
    from iii_core.errors import IIIError
    from iii_core.project.scratch import scratch_context, scratch_folder
    from iii_core.records import OpenContext

    with ExitStack() as stack:
        try:
            scratch = stack.enter_context(scratch_context(project))
        except IIIError:
            folder = stack.enter_context(scratch_folder(project.environ))
            scratch = OpenContext(
                state_dir=folder / "state", runtime_dir=folder / "run", home=project.home, environ=project.environ
            )
        yield scratch


def _show(rows: Sequence[Examined]) -> None:
    width = max(len(row.name) for row in rows)
    for row in rows:
        first, *rest = row.result.message.splitlines() or [""]
        say_styled("  ", MARKS[row.result.status], f" {row.name.ljust(width)}  {first}")
        for line in rest:
            say(" " * (width + 6) + line.strip())
        if row.result.hint:
            say(" " * (width + 6) + f"hint: {row.result.hint}")
