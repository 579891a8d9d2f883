"""``iii worker logs``: reads the project's log files, engine or not."""

from __future__ import annotations

import re
import sys
import time
from contextlib import closing
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Final, TextIO

import typer

from iii_core.cli.names import complete_worker
from iii_core.cli.output import flush, is_terminal, raw, say
from iii_core.cli.quick import QuickCommand
from iii_core.cli.state import state_of
from iii_core.cli.worker.tail import Follower, has_output
from iii_core.errors import InvalidValue
from iii_core.project.names import check_name
from iii_core.workers.logs import LOG_FILE, LineReader, LogLine, Stream, last_lines, read_log

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from iii_core.project.locate import Project

POLL: Final = 0.25
MARK: Final = "[iii]"
# On a terminal colours may stay; what else an escape sequence could do to it may not.
_UNSAFE = re.compile("\x1b(?!\\[[0-9;]*m)|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f]")
_UNSEEN = re.compile("\x1b\\[[0-9;]*m|[^\x20-\x7e\xa1-\u1fff\u2070-\ufefe]")

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command("logs", cls=QuickCommand)
def logs(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the worker.", autocompletion=complete_worker)],
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on with what it prints from now on, until Ctrl-C.")
    ] = False,
    lines: Annotated[str, typer.Option("-n", "--lines", metavar="N", help="How many lines of each stream.")] = "100",
    streams: Annotated[
        list[Stream] | None, typer.Option("--stream", help="Only this one; iii is what iii itself says of the worker.")
    ] = None,
    timestamps: Annotated[bool, typer.Option("-t", "--timestamps", help="Begin lines with time and stream.")] = False,
    previous: Annotated[bool, typer.Option("--previous", help="Show the run before this one.")] = False,
) -> None:
    """Show the latest output of a worker in its order: its stdout on stdout, its stderr and notes of iii on stderr.

    Works without a running engine, and for workers that were removed.
    """
    if not lines.isascii() or not lines.isdigit():
        raise InvalidValue(f"--lines {lines!r} is not a number")
    count = min(int(lines[:9]), 1_000_000)
    project = state_of(context).project
    folder = project.logs_dir(check_name(name))
    _require_known(project, name, folder)
    printer = _Printer(streams or list(Stream), timestamps=timestamps)
    if follow and not previous:
        _follow(folder / LOG_FILE, printer, count)
        return
    printer.print(last_lines(read_log(folder / f"{LOG_FILE}{'.1' if previous else ''}"), count))
    if not has_output(folder) and not previous:
        say(f"  {name} has no logs yet.")


def _follow(path: Path, printer: _Printer, count: int) -> None:
    reader = LineReader()
    with closing(Follower(path)) as follower:
        try:
            printer.print(last_lines(reader.read(follower.poll()), count))
            while True:
                time.sleep(POLL)
                printer.print(reader.read(follower.poll()))
        except KeyboardInterrupt:
            return


def _require_known(project: Project, name: str, folder: Path) -> None:
    """A worker is known by config.yaml, or by logs it left behind. Raises `WorkerNotInstalled`."""
    if folder.is_dir():
        return
    from iii_core.cli.worker.rows import find_row

    find_row(project, name)


class _Printer:
    """Prints lines of some streams to where they belong."""

    def __init__(self, streams: Iterable[Stream], *, timestamps: bool) -> None:
        self._streams = frozenset(streams)
        self._timestamps = timestamps

    def print(self, lines: Iterable[LogLine]) -> None:
        wanted = (line for line in lines if line.stream in self._streams)
        for is_output, group in groupby(wanted, key=lambda line: line.stream is Stream.STDOUT):
            target = sys.stdout if is_output else sys.stderr
            self._print_all(target, group)
            flush(target)  # before the other one goes on: they may be the same terminal

    def _print_all(self, target: TextIO | None, lines: Iterable[LogLine]) -> None:
        guarded = is_terminal(target)
        for line in lines:
            text = self._text(line, guarded=guarded)
            raw(target, text.encode("utf-8", "replace") + b"\n")

    def _text(self, line: LogLine, *, guarded: bool) -> str:
        text = _guard(line.text) if guarded else line.text
        if self._timestamps:
            return f"{line.time} {line.stream.value:6} {text}"
        if line.stream is Stream.III:
            return f"{MARK} {text}"
        return _disown(text) if guarded or line.stream is Stream.STDERR else text


def _guard(text: str) -> str:
    """A line as it is, but for what would take over a terminal."""
    return _UNSAFE.sub(lambda found: f"\\x{ord(found[0]):02x}", text.removesuffix("\r"))


def _disown(text: str) -> str:
    """A worker's line that would look like one of ours, with its mark made harmless."""
    seen = _UNSEEN.sub("", text).lstrip()
    return f"\\x5b{seen[1:]}" if seen.startswith(MARK) else text
