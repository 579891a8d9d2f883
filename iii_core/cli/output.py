"""Where words go: human ones to stderr, data to stdout (spec worker-cli §0.2)."""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn, TextIO

import typer

from iii_core.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Generator

PIPE_EXIT: Final = 141  # 128 + SIGPIPE
_COLOURS: Final = {"red": "31", "green": "32", "yellow": "33", "dim": "2", "bold": "1"}
# C0 but for tab and newline, DEL, C1, and the marks that reorder or hide text
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")


def say(text: str = "") -> None:
    """Tell the user something: one or more lines on stderr."""
    _write(sys.stderr, printable(text) + "\n")


def success(text: str) -> None:
    """Something was done."""
    say_styled("  ", ("✓", "green"), f" {text}")


def warn(text: str, hint: str | None = None) -> None:
    """Something the user should know, that is no error."""
    say_styled(("warning:", "yellow"), f" {text}")
    if hint:
        say(f"  hint: {hint}")


def say_error(text: str, hint: str | None = None) -> None:
    """Something went wrong."""
    say_styled(("error:", "red"), f" {text}")
    if hint:
        say(f"hint: {hint}")


def say_styled(*parts: str | tuple[str, str]) -> None:
    """A line of plain parts and (text, colour) parts."""
    shown = [printable(part) if isinstance(part, str) else styled(printable(part[0]), part[1]) for part in parts]
    _write(sys.stderr, "".join(shown) + "\n")


def styled(text: str, colour: str, stream: TextIO | None = None) -> str:
    """``text`` in a colour, if the stream (stderr) shows colours."""
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if shows_colours(stream or sys.stderr) else text


def shows_colours(stream: TextIO) -> bool:
    """Whether it is a terminal, and the user did not ask for none (no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and is_terminal(stream)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal; a closed or missing one is not."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def printable(text: str) -> str:
    """``text`` with characters that control a terminal or reorder text shown as escapes."""
    return _CONTROL.sub(
        lambda found: f"\\x{ord(found[0]):02x}" if ord(found[0]) < 256 else f"\\u{ord(found[0]):04x}", text
    )


def data(text: str) -> None:
    """Data for whoever reads stdout."""
    _write(sys.stdout, text)


def data_json(value: Any) -> None:
    """Data as indented JSON on stdout."""
    data(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def raw(stream: TextIO | None, data: bytes) -> None:
    """What a program said, as it is, on stdout or stderr; what cannot be got out is an error on both.

    It may wait for `flush`.
    """
    if stream is not None:
        with _putting_out():
            stream.buffer.write(data)


def flush(stream: TextIO | None) -> None:
    """Get out what waits in a stream."""
    if stream is not None:
        with _putting_out():
            stream.flush()


@contextmanager
def _putting_out() -> Generator[None]:
    try:
        yield
    except BrokenPipeError:
        leave_pipe()
    except OSError as error:
        discard_unwritten()
        raise unwritten(error) from error


def _write(stream: TextIO | None, text: str) -> None:
    if stream is None:  # the file descriptor was closed when the program started
        return
    try:
        _put(stream, text)
    except BrokenPipeError:
        leave_pipe()
    except OSError as error:
        discard_unwritten()
        if stream is sys.stdout:
            raise unwritten(error) from error


def _put(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
    except UnicodeEncodeError:
        stream.write(text.encode(stream.encoding or "ascii", "backslashreplace").decode(stream.encoding or "ascii"))
    stream.flush()


def unwritten(error: OSError) -> OutputError:
    """The error for data that nobody got; words for people that nobody got are none."""
    return OutputError(
        f"cannot write the output: {error.strerror or error}", hint="free some space, or write elsewhere"
    )


def leave_pipe() -> NoReturn:
    """Exit as a program does whose reader went away, with nothing left to flush into the void."""
    discard_unwritten()
    raise typer.Exit(PIPE_EXIT)


def discard_unwritten() -> None:
    """Forget what a stream cannot get rid of, and all that is still to be written there."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(null, stream.fileno())
    os.close(null)
