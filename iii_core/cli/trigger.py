"""``iii trigger``: one function call from the command line (spec protocol §8.4)."""

from __future__ import annotations

from textwrap import indent
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from iii_core.cli.numbers import MAX_PORT, parse_number
from iii_core.cli.output import data, say, say_error
from iii_core.cli.quick import QuickCommand
from iii_core.cli.state import state_of
from iii_core.errors import InvocationError, UsageError
from iii_core.suggestions import did_you_mean

if TYPE_CHECKING:
    from iii_core.cli.state import State

app = typer.Typer(rich_markup_mode=None, add_completion=False)


EXAMPLES: Final = """\b
Examples:
  iii trigger math::add a=2 b=3
  iii trigger math::add --json '{"a": 2, "b": 3}'
  iii trigger math::add --help
"""


@app.command("trigger", cls=QuickCommand, add_help_option=False, epilog=EXAMPLES)
def trigger(
    context: typer.Context,
    function: Annotated[
        str | None, typer.Argument(metavar="FUNCTION", help="Id of the function, such as math::add.")
    ] = None,
    pairs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Members of the payload: a value is JSON where it can be (a=2), else text."
        ),
    ] = None,
    json_text: Annotated[
        str | None, typer.Option("--json", metavar="JSON", help="The payload; KEY=VALUE members are set over it.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="HOST", help="Call an engine elsewhere, instead of this project's."),
    ] = None,
    port: Annotated[str | None, typer.Option("--port", metavar="PORT", help="The port of that engine.")] = None,
    timeout_ms: Annotated[
        str, typer.Option("--timeout-ms", metavar="MS", help="How long to wait for the result.")
    ] = "30000",
    function_id: Annotated[str | None, typer.Option("--function-id", hidden=True)] = None,
    payload: Annotated[str | None, typer.Option("--payload", hidden=True)] = None,
    help_wanted: Annotated[
        bool, typer.Option("--help", "-h", help="Explain this command, or FUNCTION if given.")
    ] = False,
) -> None:
    """Call a function and print its result as JSON on stdout; nothing for a function without one.

    A failed call is an error with the code, message and stack trace that the engine or the worker gave it.
    """
    target = function or function_id
    if target is None:
        if help_wanted:
            data(context.get_help() + "\n")
            return
        raise UsageError("which function?", hint="iii trigger FUNCTION [KEY=VALUE …]")
    if function_id is not None and function is not None:
        raise UsageError(f"two functions: {function!r} and {function_id!r}")
    if json_text is not None and payload is not None:
        raise UsageError("--json and --payload mean the same; give one of them")

    from iii_core.cli import calling

    url = calling.engine_url(state_of(context).project, address, parse_number(port, "--port", MAX_PORT))
    timeout = (parse_number(timeout_ms, "--timeout-ms", 2**31) or 0) / 1000
    if help_wanted:
        _explain(state_of(context), url, target, timeout)
        return
    body = calling.payload(json_text if json_text is not None else payload, pairs or [])
    try:
        result = calling.call(state_of(context), url, target, body, timeout)
    except InvocationError as error:
        say_error(f"[{error.code}] {error.message}", _hint(state_of(context), url, target, error))
        if error.stacktrace:
            say("stack trace of the worker:\n" + indent(error.stacktrace.rstrip(), "  "))
        raise typer.Exit(1) from None
    if result is not None:
        data(calling.pretty(result) + "\n")


def _hint(state: State, url: str, function: str, error: InvocationError) -> str | None:
    if error.code != "function_not_found":
        return None
    from iii_core.cli import calling

    return did_you_mean(function, calling.function_ids(state, url)) or (
        "no connected worker provides it; 'iii worker list' shows whether its worker runs"
    )


def _explain(state: State, url: str, function: str, timeout: float) -> None:
    from iii_core.cli import calling

    question = calling.payload(None, [f"function_id={calling.text(function)}"])
    info: Any = calling.decode(calling.call(state, url, "engine::functions::info", question, timeout))
    lines = [function, *(f"  {line}" for line in str(info.get("description") or "").splitlines())]
    for key, title in (("request_schema", "Request"), ("response_schema", "Response")):
        if info.get(key):
            lines += ["", f"{title}:", calling.pretty(calling.encode(info[key]))]
    data("\n".join(lines) + "\n")
