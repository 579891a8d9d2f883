"""``iii worker exec``: options and exit codes; the session itself is in `iii_core.cli.worker.session`."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Final

import typer

from iii_core.cli.names import complete_worker
from iii_core.cli.output import is_terminal, say_error
from iii_core.cli.quick import QuickCommand
from iii_core.cli.state import state_of
from iii_core.cli.worker.rows import require_engine
from iii_core.errors import InvalidValue, ProcessSpawnError, UsageError
from iii_core.project.durations import parse_duration
from iii_core.project.names import check_name

EXAMPLES: Final = """\b
Examples:
  iii worker exec my-worker -- ls -la /workspace
  iii worker exec my-worker -e LOG_LEVEL=debug -w /tmp -- ./probe
  iii worker exec my-worker -- sh
"""


class ExecCommand(QuickCommand):
    """Options after the worker's name are ours up to ``--``; a forgotten one is likely, so it is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As any command does."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except typer.TyperException as error:
            if len(given) > 1 and "--" not in given:
                error.__dict__["hint"] = "write '--' before the command: iii worker exec NAME -- COMMAND [ARG]..."
            raise


app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command("exec", cls=ExecCommand, epilog=EXAMPLES)
def execute(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of a running worker.", autocompletion=complete_worker)
    ],
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- COMMAND [ARG]...", help="Program and arguments, as they are: no shell reads them."),
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option("-e", "--env", metavar="KEY=VALUE", help="Set a variable; may be repeated.")
    ] = None,
    workdir: Annotated[
        str | None, typer.Option("-w", "--workdir", metavar="PATH", help="Where to run it, instead of /workspace.")
    ] = None,
    tty: Annotated[bool, typer.Option("-t", "--tty", help="Give it a terminal, even if stdin is none.")] = False,
    no_tty: Annotated[bool, typer.Option("--no-tty", help="Give it pipes, even on a terminal.")] = False,
    timeout: Annotated[
        str | None,
        typer.Option(
            "--timeout",
            metavar="DURATION",
            help="Kill it after a time such as 30s or 1m 30s; the exit code is 124 then.",
        ),
    ] = None,
) -> None:
    """Run a command inside the sandbox of a running worker. Its exit code becomes this command's.

    On a terminal it gets a terminal. With stdin or stdout redirected it gets pipes, and bytes pass unchanged. Ctrl-C
    interrupts it; a second one within a second kills it.
    """
    if not command:
        raise InvalidValue("no command given", hint=f"iii worker exec {name} -- COMMAND [ARG]...")
    if tty and no_tty:
        raise UsageError("--tty and --no-tty exclude each other")
    seconds = None if timeout is None else parse_duration(timeout)
    variables = dict(_variable(text) for text in env or [])
    check_name(name)

    from iii_core.cli.worker.session import TIMED_OUT, Session

    project = state_of(context).project
    require_engine(project, name)
    session = Session(
        project=project,
        name=name,
        argv=command,
        env=variables,
        cwd=workdir,
        terminal=tty or (not no_tty and is_terminal(sys.stdin) and is_terminal(sys.stdout)),
        timeout=seconds,
    )
    try:
        code = session.run()
    except ProcessSpawnError as error:
        say_error(f"[{error.code}] {error.message}", error.hint)
        raise typer.Exit(error.exit_code_like) from None
    if code == TIMED_OUT and session.timed_out:
        say_error(f"timed out after {timeout}")
    raise typer.Exit(code)


def _variable(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise UsageError(f"-e {text!r} is not KEY=VALUE")
    return name, value
