"""Runs checks of the sandbox conformance kit one after the other, outside any test framework; leaves nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from iii_core.errors import IIIError, leading_error
from iii_core.testing.sandbox_harness import SandboxesUnderTest
from iii_core.testing.sandbox_kit import CHECKS, Check

TIMEOUT: Final = 300.0
"""Seconds after which a check has failed: some boot a dozen sandboxes, and virtual machines may be emulated."""
TIDY_TIMEOUT: Final = 60.0
CONSOLE_LINES: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one check went.

    Attributes:
        name: of the check, without ``check_``.
        summary: the first line of what it says of itself.
        seconds: how long it took.
        error: why it failed, or None.
        console: where it failed, the last lines of its sandboxes' consoles.
        left: files that could not be deleted afterwards.
    """

    name: str
    summary: str
    seconds: float
    error: str | None = None
    console: tuple[str, ...] = ()
    left: str | None = None

    @property
    def ok(self) -> bool:
        """Whether it passed, and nothing stayed."""
        return self.error is None and self.left is None

    def as_json(self) -> dict[str, Any]:
        """As ``iii sandbox check --json`` prints it."""
        return {
            "name": self.name,
            "summary": self.summary,
            "ok": self.ok,
            "seconds": round(self.seconds, 3),
            "error": self.error,
            "console": list(self.console),
            "left": self.left,
        }


def name_of(check: Check) -> str:
    """``lifecycle`` for ``check_lifecycle``."""
    return str(getattr(check, "__name__", check)).removeprefix("check_")


def select(pattern: str) -> list[Check]:
    """The checks whose names contain ``pattern``, in the kit's order; all of them for an empty one."""
    return [check for check in CHECKS if pattern.casefold() in name_of(check)]


async def run_checks(
    checks: Iterable[Check],
    prepare: Callable[[Path], SandboxesUnderTest],
    folder: Path,
    *,
    timeout: float = TIMEOUT,
    report: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Run each check in a folder of its own below ``folder``; how they went, also told to ``report`` one by one.

    ``prepare`` is given that folder. Cancelling ends the check at hand and still deletes what it made.
    """
    outcomes: list[Outcome] = []
    for check in checks:
        outcomes.append(await _run_check(check, prepare(folder / name_of(check)), timeout))
        if report is not None:
            report(outcomes[-1])
    return outcomes


async def _run_check(check: Check, under_test: SandboxesUnderTest, timeout: float) -> Outcome:
    under_test.folder.mkdir()
    begun = trio.current_time()
    console: tuple[str, ...] = ()
    try:
        error = await _failure_of(check, under_test, timeout)
        seconds = trio.current_time() - begun
        if error is not None:
            console = _console(under_test.folder)
    finally:
        with trio.move_on_after(TIDY_TIMEOUT, shield=True):
            await _drop_layers(under_test)
        shutil.rmtree(under_test.folder, ignore_errors=True)
    return Outcome(
        name=name_of(check),
        summary=(check.__doc__ or "").strip().partition("\n")[0],
        seconds=seconds,
        error=error,
        console=console,
        left=f"{under_test.folder} cannot be deleted" if under_test.folder.exists() else None,
    )


async def _failure_of(check: Check, under_test: SandboxesUnderTest, timeout: float) -> str | None:
    try:
        with trio.fail_after(timeout):
            await check(under_test)
    except Exception as error:  # whatever a backend does wrong is what we are after
        return _in_words(leading_error(error))
    return None


def _in_words(error: BaseException) -> str:
    if isinstance(error, trio.TooSlowError):
        return "it took too long"
    if isinstance(error, IIIError):
        return f"[{error.code}] {error.message}" + (f" (hint: {error.hint})" if error.hint else "")
    if isinstance(error, AssertionError):
        return str(error) or f"assertion failed at {_place(error)}"
    return f"{error!r} at {_place(error)}"


def _place(error: BaseException) -> str:
    """Where it was raised, and what stands there."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line}" if frames else "an unknown place"


def _console(folder: Path) -> tuple[str, ...]:
    lines: list[str] = []
    for path in sorted(folder.glob("*.console")):
        with suppress(OSError):
            said = path.read_text(encoding="utf-8", errors="replace").splitlines()[-CONSOLE_LINES:]
            lines += [f"{path.stem}: {line}" for line in said]
    return tuple(lines)


async def _drop_layers(under_test: SandboxesUnderTest) -> None:
    """Let the backend delete what its sandboxes wrote: it may belong to ids that only the backend may touch."""
    layers = sorted(under_test.folder.glob("*.layer"))
    if not layers:
        return
    try:
        async with under_test.open() as driver:
            for layer in layers:
                await driver.create(under_test.spec(layer.stem))
                await driver.destroy(layer.stem, keep_writable=False)
    except* IIIError:
        pass  # what stays is reported
