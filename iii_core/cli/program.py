"""The program behind ``iii``: the one place where errors become words and exit codes."""

from __future__ import annotations

import io
import os
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeGuard

import typer

from iii_core.cli.elsewhere import wrong_folder
from iii_core.cli.main import INTERRUPTED, leave
from iii_core.cli.output import discard_unwritten, leave_pipe, say, say_error, unwritten
from iii_core.cli.state import State
from iii_core.errors import EngineNotRunning, IIIError, WorkerNotInstalled, leading_error

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence


def run(argv: Sequence[str]) -> int:
    """Run a command line and give its exit code; never raises but for what ends an interpreter."""
    state = State()
    try:
        with _interrupts():
            _prepare_standard_streams()
            return _run(list(argv), state)
    except typer.Exit as leaving:
        return leaving.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except typer.Abort:
        say("Aborted.")
        return 1
    except typer.TyperException as error:
        return _usage(error)
    except (Exception, BaseExceptionGroup) as error:
        return _failure(error, state)


@contextmanager
def _interrupts() -> Generator[None]:
    """In the block Ctrl-C is a `KeyboardInterrupt`, as there is something to clean up."""
    before = signal.getsignal(signal.SIGINT)
    try:
        if before is leave:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _prepare_standard_streams() -> None:
    """Make sure that they are there, and that what stdout could not write is still in it (see `_is_of_stdout`).

    Descriptors 0 to 2 that are closed would be given to the next files that are opened, and then be written to.
    ``PYTHONUNBUFFERED`` leaves stdout without a buffer, so it gets one, for a line at a time.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    if sys.stdout is not None and isinstance(sys.stdout.buffer, io.RawIOBase):
        encoding, errors = sys.stdout.encoding, sys.stdout.errors
        sys.stdout = open(1, "w", buffering=1, encoding=encoding, errors=errors, closefd=False)  # noqa: SIM115


def _run(argv: list[str], state: State) -> int:
    from iii_core.cli.root import app

    command = typer.main.get_command(app)
    result = command.main(argv, prog_name="iii", standalone_mode=False, obj=state)
    if sys.stdout is not None:
        sys.stdout.flush()
    return result if isinstance(result, int) else 0


def _usage(error: typer.TyperException) -> int:
    """A command line that cannot be understood; no arguments at all get the help."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        say(error.format_message())
    else:
        see = f"see '{context.command_path if context is not None else 'iii'} --help'"
        say_error(error.format_message(), getattr(error, "hint", None) or see)
    return error.exit_code


def _failure(error: BaseException, state: State) -> int:
    if state.debug:
        import traceback

        traceback.print_exception(error)
    leader = leading_error(error)
    if isinstance(leader, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(leader, typer.Exit):
        return leader.exit_code
    if isinstance(leader, IIIError):
        say_error(f"[{leader.code}] {leader.message}", leader.hint)
        if isinstance(leader, (EngineNotRunning, WorkerNotInstalled)) and (note := wrong_folder(state)):
            say(f"note: {note}")
        return leader.exit_code
    if isinstance(leader, BrokenPipeError):
        return _broken_pipe()
    if _is_of_stdout(leader):
        discard_unwritten()
        leader = unwritten(leader)
        say_error(f"[{leader.code}] {leader.message}", leader.hint)
        return leader.exit_code
    if isinstance(leader, OSError) and leader.errno:
        say_error(f"[{IIIError.default_code}] {os.strerror(leader.errno)}: {leader.filename or 'no file'}")
        return 1
    # Not the error's own text: nobody has checked that it holds no secret.
    say_error(
        f"[{IIIError.default_code}] internal error ({type(leader).__name__})",
        None if state.debug else "run 'iii --debug …' to see where",
    )
    return 1


def _is_of_stdout(error: BaseException) -> TypeGuard[OSError]:
    """Whether an error came out of writing to stdout, which then still has what it could not write."""
    if not isinstance(error, OSError) or error.filename is not None or sys.stdout is None:
        return False
    try:
        sys.stdout.flush()
    except OSError as again:
        return again.errno == error.errno
    return False


def _broken_pipe() -> int:
    try:
        leave_pipe()
    except typer.Exit as leaving:
        return leaving.exit_code
