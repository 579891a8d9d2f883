"""``iii trigger``: one function call from the command line (spec protocol §8.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from iii_core.cli.output import data, say
from iii_core.cli.quick import QuickCommand
from iii_core.cli.state import state_of
from iii_core.errors import InvocationError, UsageError

if TYPE_CHECKING:
    from iii_core.cli.state import State

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command("trigger", cls=QuickCommand, add_help_option=False)
def trigger(
    context: typer.Context,
    function: Annotated[str | None, typer.Argument(metavar="FUNCTION", help="Id of the function to call.")] = None,
    pairs: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Members of the payload; a value is JSON or text.")
    ] = None,
    json_text: Annotated[str | None, typer.Option("--json", metavar="JSON", help="The payload.")] = None,
    address: Annotated[str | None, typer.Option("--address", metavar="HOST", help="Where the engine runs.")] = None,
    port: Annotated[str | None, typer.Option("--port", metavar="PORT", help="The engine's port.")] = None,
    timeout_ms: Annotated[str, typer.Option("--timeout-ms", metavar="MS", help="How long to wait.")] = "30000",
    function_id: Annotated[str | None, typer.Option("--function-id", hidden=True)] = None,
    payload: Annotated[str | None, typer.Option("--payload", hidden=True)] = None,
    help_wanted: Annotated[
        bool, typer.Option("--help", "-h", help="Explain this command, or FUNCTION if given.")
    ] = False,
) -> None:
    """Call a function and print its result as JSON.

    The project's running engine is called, unless --address or --port say otherwise.
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

    url = calling.engine_url(state_of(context).project, address, _number(port, "--port", 65535))
    timeout = (_number(timeout_ms, "--timeout-ms", 2**31) or 0) / 1000
    if help_wanted:
        _explain(state_of(context), url, target, timeout)
        return
    body = calling.payload(json_text if json_text is not None else payload, pairs or [])
    try:
        result = calling.call(state_of(context), url, target, body, timeout)
    except InvocationError as error:
        say("Error: " + calling.pretty(calling.error_body(error)))
        raise typer.Exit(1) from None
    if result is not None:
        data(calling.pretty(result) + "\n")


def _explain(state: State, url: str, function: str, timeout: float) -> None:
    from iii_core.cli import calling

    question = calling.payload(None, [f"function_id={calling.text(function)}"])
    info: Any = calling.decode(calling.call(state, url, "engine::functions::info", question, timeout))
    lines = [function, *(f"  {line}" for line in str(info.get("description") or "").splitlines())]
    for key, title in (("request_schema", "Request"), ("response_schema", "Response")):
        if info.get(key):
            lines += ["", f"{title}:", calling.pretty(calling.encode(info[key]))]
    data("\n".join(lines) + "\n")


def _number(text: str | None, option: str, most: int) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:20]) <= most:
        raise UsageError(f"{option} {text!r} is not a number from 1 to {most}")
    return int(text)
