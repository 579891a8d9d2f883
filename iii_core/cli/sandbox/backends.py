"""``iii sandbox backends``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from iii_core.cli.output import data_json, say
from iii_core.cli.quick import QuickCommand
from iii_core.cli.state import state_of
from iii_core.cli.table import table

if TYPE_CHECKING:
    from iii_core.sandbox.survey import Finding

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command("backends", cls=QuickCommand)
def backends(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """List the installed sandbox backends, whether they work on this machine, and which one `auto` takes.

    Each is tried out, which may mean to boot a virtual machine. No engine is needed, and none is disturbed.
    """
    found = _survey(context)
    if as_json:
        data_json({"backends": [finding.as_json() for finding in found]})
    elif not found:
        say("  No sandbox backends. Install one, such as iii-sandbox-bubblewrap.")
    else:
        say(render(found))


def _survey(context: typer.Context) -> list[Finding]:
    from iii_core.cli.running import run_async
    from iii_core.cli.sandbox.settings import backend_settings
    from iii_core.project.scratch import scratch_context
    from iii_core.sandbox.survey import survey

    state = state_of(context)
    settings = backend_settings(state)
    with scratch_context(state.project) as scratch:
        return run_async(partial(survey, state.plugins, scratch, settings))


def render(found: list[Finding]) -> str:
    """A table, and a paragraph on each backend."""
    head = ["NAME", "ISOLATION", "WORKS", "AUTO", "DISTRIBUTION"]
    lines = [table(head, [_cells(finding) for finding in found])]
    for finding in found:
        record, verdict = finding.record, finding.verdict
        able = ", ".join(sorted(record.capabilities)) or "nothing beyond the basics"
        lines += ["", f"  {record.name}: {record.summary}", f"    can: {able}"]
        lines += [f"    lacks: {name}, for {lack.reason}: {lack.hint}" for name, lack in sorted(record.lacks.items())]
        if verdict.reason:
            lines += _indented("why not automatic: " if verdict.ok else "why not: ", verdict.reason)
        if verdict.hint:
            lines += _indented("hint: ", verdict.hint)
    return "\n".join(lines)


def _cells(finding: Finding) -> list[str]:
    verdict = finding.verdict
    taken = "taken" if finding.chosen else "would do" if verdict.ok and verdict.automatic else "no"
    return [
        finding.record.name,
        finding.record.isolation.value,
        "yes" if verdict.ok else "no",
        taken,
        f"{finding.plugin.distribution} {finding.plugin.version}".rstrip(),
    ]


def _indented(label: str, text: str) -> list[str]:
    first, *rest = text.splitlines() or [""]
    return [f"    {label}{first}", *(f"      {line.strip()}" for line in rest)]
