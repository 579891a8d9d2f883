"""``iii worker logs``: reads the project's log files, engine or not."""

from __future__ import annotations

import re
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Final, TextIO

import typer

from iii_core.cli.names import complete_worker
from iii_core.cli.output import is_terminal, leave_pipe, say
from iii_core.cli.quick import QuickCommand
from iii_core.cli.state import state_of
from iii_core.cli.worker.tail import Follower, has_output, tail_lines
from iii_core.errors import InvalidValue
from iii_core.project.names import check_name

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from iii_core.project.locate import Project

POLL: Final = 0.25
# On a terminal colours may stay; what else an escape sequence could do to it may not.
_UNSAFE = re.compile("\x1b(?!\\[[0-9;]*m)|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f]")

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command("logs", cls=QuickCommand)
def logs(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the worker.", autocompletion=complete_worker)],
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on with what it prints from now on, until Ctrl-C.")
    ] = False,
    lines: Annotated[str, typer.Option("-n", "--lines", metavar="N", help="How many lines of each stream.")] = "100",
    previous: Annotated[bool, typer.Option("--previous", help="Show the run before this one.")] = False,
) -> None:
    """Show the latest output of a worker: its stderr on stderr, its stdout on stdout.

    Works without a running engine, and for workers that were removed.
    """
    if not lines.isascii() or not lines.isdigit():
        raise InvalidValue(f"--lines {lines!r} is not a number")
    count = min(int(lines[:9]), 1_000_000)
    project = state_of(context).project
    folder = project.logs_dir(check_name(name))
    _require_known(project, name, folder)
    if follow and not previous:
        _follow(folder, count)
        return
    suffix = ".1" if previous else ""
    _print(sys.stderr, tail_lines(folder / f"stderr.log{suffix}", count))
    _print(sys.stdout, tail_lines(folder / f"stdout.log{suffix}", count))
    if not has_output(str(folder)) and not previous:
        say(f"  {name} has no logs yet.")


def _follow(folder: Path, count: int) -> None:
    with (
        closing(Follower(folder / "stderr.log", count=count)) as errors,
        closing(Follower(folder / "stdout.log", count=count)) as output,
    ):
        streams = ((errors, sys.stderr), (output, sys.stdout))
        try:
            for follower, stream in streams:
                _print(stream, follower.start())
            while True:
                for follower, stream in streams:
                    _print(stream, follower.poll())
                time.sleep(POLL)
        except KeyboardInterrupt:
            return


def _require_known(project: Project, name: str, folder: Path) -> None:
    """A worker is known by config.yaml, or by logs it left behind. Raises `WorkerNotInstalled`."""
    if folder.is_dir():
        return
    from iii_core.cli.worker.rows import find_row

    find_row(project, name)


def _print(stream: TextIO, lines: Iterable[str]) -> None:
    """Lines as they are, but for what would take over a terminal."""
    guarded = is_terminal(stream)
    try:
        for line in lines:
            text = _UNSAFE.sub(lambda found: f"\\x{ord(found[0]):02x}", line) if guarded else line
            stream.buffer.write(text.encode("utf-8", "replace") + b"\n")
        stream.flush()
    except BrokenPipeError:
        leave_pipe()
