"""Runs the checks of ``iii doctor``: all at once, each bounded in time, and none able to end the others."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import trio

from iii_core.errors import IIIError, leading_error
from iii_core.records import Check, CheckResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from iii_core.host import PluginHost
    from iii_core.records import OpenContext

TIMEOUT: Final = 60.0
"""Seconds after which a check has failed; a trial of a sandbox backend may take 30."""
AT_ONCE: Final = 16
STATUSES: Final = frozenset({"ok", "warning", "failed"})
CORE: Final = "iii-core"


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """A row of ``iii doctor``: the check of a distribution, and its verdict."""

    name: str
    distribution: str
    result: CheckResult

    def as_json(self) -> dict[str, Any]:
        """As ``iii doctor --json`` prints it."""
        return {
            "name": self.name,
            "distribution": self.distribution,
            "status": self.result.status,
            "message": self.result.message,
            "hint": self.result.hint,
        }


async def examine(
    core: Sequence[Check], plugins: PluginHost, context: OpenContext, *, timeout: float = TIMEOUT
) -> list[Examined]:
    """Run the core's checks and those of all plugins; the core's come first, then those of plugins as declared.

    A check that raises, takes longer than ``timeout`` seconds or answers something else is a failed row.
    """
    declared = plugins.declared(Check)
    checks = [(CORE, check) for check in core]
    checks += [(item.plugin.distribution, item.record) for item in declared if isinstance(item.record, Check)]
    results: dict[int, CheckResult] = {}
    slots = trio.Semaphore(AT_ONCE)

    async def run(number: int, check: Check) -> None:
        async with slots:
            results[number] = await _verdict(check, context, timeout)

    async with trio.open_nursery() as nursery:
        for number, (_, check) in enumerate(checks):
            nursery.start_soon(run, number, check)
    return [
        Examined(name=check.name, distribution=distribution, result=results[number])
        for number, (distribution, check) in enumerate(checks)
    ]


async def _verdict(check: Check, context: OpenContext, timeout: float) -> CheckResult:
    try:
        with trio.move_on_after(timeout):
            return _understood(await check.run(context))
    except BaseException as error:  # noqa: ASYNC103 - whatever is wrong with a check is a row, not the others' end
        if _ends_all(error):  # cancellation too
            raise
        leader = leading_error(error)
        if isinstance(leader, IIIError):
            return _failed(f"[{leader.code}] {leader.message}", leader.hint)  # noqa: ASYNC104
        return _failed(f"the check itself is broken: {type(leader).__name__}{_place(leader)}")  # noqa: ASYNC104
    return _failed(f"no answer within {timeout:g} s")


def _ends_all(error: BaseException) -> bool:
    """Whether an error, or a part of a group, is the user's or trio's way to end things; `SystemExit` is not."""
    if isinstance(error, BaseExceptionGroup):
        return any(_ends_all(part) for part in cast("BaseExceptionGroup[BaseException]", error).exceptions)
    return isinstance(error, (KeyboardInterrupt, trio.Cancelled))


def _place(error: BaseException) -> str:
    """Where it was raised; not the error's own text, as nobody has checked that it holds no secret."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _understood(result: object) -> CheckResult:
    """What a plugin answered, which nobody has checked yet."""
    if isinstance(result, CheckResult) and result.status in STATUSES:
        return result
    return _failed(f"the check itself is broken: it answered {type(result).__name__}")


def _failed(message: str, hint: str | None = None) -> CheckResult:
    return CheckResult(status="failed", message=message, hint=hint)
