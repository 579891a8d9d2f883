"""Running the conformance kit outside a test framework: what is said of a check, and that nothing stays."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from iii_core.errors import SandboxError
from iii_core.records import OpenContext
from iii_core.sandbox.host import open_inline_host
from iii_core.sandbox.port import RootImage, SandboxDriver
from iii_core.testing.memory_backend import CAPABILITIES, MemoryBackend
from iii_core.testing.memory_programs import COMMANDS
from iii_core.testing.sandbox_harness import SandboxesUnderTest, started
from iii_core.testing.sandbox_kit import CHECKS, Check
from iii_core.testing.sandbox_trial import Outcome, name_of, run_checks, select


def prepare(folder: Path) -> SandboxesUnderTest:
    context = OpenContext(state_dir=folder, runtime_dir=folder, home=folder, environ={})
    image = RootImage(path=folder / "none", format="squashfs", digest="")

    @asynccontextmanager
    async def open_driver() -> AsyncGenerator[SandboxDriver]:
        async with open_inline_host({"memory": MemoryBackend().record()}, context) as host:
            yield await host.driver("memory")

    return SandboxesUnderTest(
        open=open_driver, image=image, folder=folder, capabilities=CAPABILITIES, commands=COMMANDS
    )


def is_empty(folder: Path) -> bool:
    return not list(folder.iterdir())


async def outcome_of(check: Check, folder: Path, timeout: float = 30) -> Outcome:
    (outcome,) = await run_checks([check], prepare, folder, timeout=timeout)
    assert is_empty(folder)
    return outcome


def test_checks_are_chosen_by_a_part_of_their_name() -> None:
    assert select("") == list(CHECKS)
    assert [name_of(check) for check in select("Cancelled")] == [
        "cancelled_create",
        "cancelled_start",
        "cancelled_stop",
        "cancelled_save",
        "cancelled_restore",
    ]
    assert select("no such") == []


async def test_a_good_backend_passes_and_leaves_nothing(tmp_path: Path) -> None:
    told: list[str] = []
    checks = select("destroy_drops") + select("users")
    outcomes = await run_checks(checks, prepare, tmp_path, report=lambda outcome: told.append(outcome.name))
    assert [outcome.name for outcome in outcomes] == told == ["destroy_drops_the_layer", "users"]
    assert all(outcome.ok and outcome.error is None and outcome.seconds > 0 for outcome in outcomes)
    assert is_empty(tmp_path)


async def test_a_failed_check_is_told_with_its_console(tmp_path: Path) -> None:
    async def check_something(under_test: SandboxesUnderTest) -> None:
        """It is so.

        Not told.
        """
        async with started(under_test) as (driver, sandbox_id):
            await driver.state(sandbox_id)
            raise AssertionError("it is not so")

    outcome = await outcome_of(check_something, tmp_path)
    assert not outcome.ok
    assert (outcome.name, outcome.summary, outcome.error) == ("something", "It is so.", "it is not so")
    assert outcome.console == ("one: memory: booting",)
    assert outcome.as_json()["console"] == ["one: memory: booting"]


async def test_whatever_is_raised_is_an_outcome(tmp_path: Path) -> None:
    async def check_bare(under_test: SandboxesUnderTest) -> None:
        await trio.lowlevel.checkpoint()
        raise AssertionError  # as a bare assert does

    async def check_bug(under_test: SandboxesUnderTest) -> None:
        await trio.lowlevel.checkpoint()
        raise ExceptionGroup("a nursery's", [KeyError("x")])

    async def check_backend(under_test: SandboxesUnderTest) -> None:
        await trio.lowlevel.checkpoint()
        raise SandboxError("no", hint="do")

    async def check_slow(under_test: SandboxesUnderTest) -> None:
        async with started(under_test):
            await trio.sleep_forever()

    told = str((await outcome_of(check_bare, tmp_path)).error)
    assert told.startswith("assertion failed at test_sandbox_trial.py:")
    assert "raise AssertionError" in told
    assert str((await outcome_of(check_bug, tmp_path)).error).startswith("KeyError('x') at ")
    assert (await outcome_of(check_backend, tmp_path)).error == "[W230] no (hint: do)"
    assert (await outcome_of(check_slow, tmp_path, timeout=0.1)).error == "it took too long"


async def test_what_cannot_be_deleted_fails_a_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check_nothing(under_test: SandboxesUnderTest) -> None:
        await trio.lowlevel.checkpoint()

    with monkeypatch.context() as patch:
        patch.setattr("iii_core.testing.sandbox_trial.shutil.rmtree", lambda path, ignore_errors: None)
        (outcome,) = await run_checks([check_nothing], prepare, tmp_path)
    assert not outcome.ok
    assert outcome.left == f"{tmp_path / 'nothing'} cannot be deleted"


async def test_cancelled_it_leaves_nothing(tmp_path: Path) -> None:
    ready = trio.Event()

    async def check_long(under_test: SandboxesUnderTest) -> None:
        async with started(under_test):
            ready.set()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_checks, [check_long], prepare, tmp_path)
        await ready.wait()
        nursery.cancel_scope.cancel()
    assert is_empty(tmp_path)
