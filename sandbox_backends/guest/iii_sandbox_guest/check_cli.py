"""``iii sandbox check``: the conformance kit on this machine, against an installed backend."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iii_core.cli.output import data_json, say, say_styled
from iii_core.cli.quick import QuickCommand
from iii_core.cli.state import State, state_of
from iii_core.errors import PluginMissing, UsageError

if TYPE_CHECKING:
    from iii_core.records import SandboxBackend
    from iii_core.sandbox.host import SandboxHost
    from iii_core.sandbox.port import SandboxDriver
    from iii_core.testing.sandbox_harness import SandboxesUnderTest
    from iii_core.testing.sandbox_trial import Outcome

    OpenHost = Callable[[], AbstractAsyncContextManager[SandboxHost]]

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(cls=QuickCommand)
def check(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The backend, as `iii sandbox backends` names it.")],
    pattern: Annotated[str, typer.Option("-k", metavar="PATTERN", help="Only checks whose name contains this.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Check on this machine that a sandbox backend keeps its promises, with sandboxes of a tiny image made on the spot.

    Checks begin, end, kill and disturb sandboxes, and look from outside at what is left: processes, mounts, control
    groups, files. It takes seconds with namespaces and minutes with virtual machines. No engine and no network are
    needed. The exit code is 1 if a check failed.
    """
    if not __debug__:
        raise UsageError("checks are assertions, which Python is told to leave out", hint="unset PYTHONOPTIMIZE")
    from iii_core.cli.running import run_async
    from iii_core.cli.sandbox.settings import backend_settings
    from iii_core.project.scratch import scratch_context, scratch_folder
    from iii_core.sandbox.hostclient import open_sandbox_host

    state = state_of(context)
    record, settings = _record(state, name), backend_settings(state)
    with scratch_context(state.project) as scratch, scratch_folder(state.project.environ) as folder:
        open_host = partial(open_sandbox_host, scratch, config=settings)
        outcomes = run_async(partial(_run, record, open_host, folder, pattern, None if as_json else _show))
    failed = [outcome for outcome in outcomes if not outcome.ok]
    if as_json:
        data_json({"backend": name, "ok": not failed, "checks": [outcome.as_json() for outcome in outcomes]})
    else:
        say(f"  {len(outcomes) - len(failed)} of {len(outcomes)} checks passed for {name}.")
    if failed:
        raise typer.Exit(1)


def _record(state: State, name: str) -> SandboxBackend:
    from iii_core.records import SandboxBackend

    installed = state.plugins.collect(SandboxBackend)
    if name not in installed:
        raise PluginMissing(
            f"there is no sandbox backend {name!r}",
            hint=f"installed backends: {', '.join(sorted(installed)) or 'none'}",
            details={"backend": name},
        )
    return installed[name]


async def _run(
    record: SandboxBackend, open_host: OpenHost, place: Path, pattern: str, report: Callable[[Outcome], None] | None
) -> list[Outcome]:
    from iii_core.sandbox.host import unavailable
    from iii_core.testing.sandbox_harness import SandboxesUnderTest
    from iii_core.testing.sandbox_trial import name_of, run_checks, select
    from iii_sandbox_guest.checkprog import COMMANDS, make_check_image

    checks = select(pattern)
    if not checks:
        names = ", ".join(name_of(check) for check in select(""))
        raise UsageError(f"no check has {pattern!r} in its name", hint=f"their names: {names}")
    async with open_host() as host:
        verdict = await host.probe(record.name)
    if not verdict.ok:
        raise unavailable(record.name, verdict)
    image = make_check_image(place / "image.squashfs")

    @asynccontextmanager
    async def open_backend() -> AsyncGenerator[SandboxDriver]:
        async with open_host() as host:
            yield await host.driver(record.name)

    def prepare(folder: Path) -> SandboxesUnderTest:
        return SandboxesUnderTest(
            open=open_backend, image=image, folder=folder, capabilities=record.capabilities, commands=COMMANDS
        )

    return await run_checks(checks, prepare, place, report=report)


def _show(outcome: Outcome) -> None:
    mark = ("✓", "green") if outcome.ok else ("✗", "red")
    say_styled("  ", mark, f" {outcome.name} ({outcome.seconds:.2f} s)")
    for line in [] if outcome.ok else _why(outcome):
        say(f"      {line}")


def _why(outcome: Outcome) -> list[str]:
    lines = [f"it should be: {outcome.summary}", *(outcome.error or "").splitlines()]
    lines += [outcome.left] if outcome.left else []
    return [*lines, "console:", *(f"  {line}" for line in outcome.console)] if outcome.console else lines
