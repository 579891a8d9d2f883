"""Running checks: at once, bounded, and none able to end the others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from iii_core import hookimpl
from iii_core.app.doctor import examine
from iii_core.cli.doctor import doctor_folders
from iii_core.errors import ConfigError, EngineError
from iii_core.host import PluginHost
from iii_core.project.locate import Project, locate_project
from iii_core.records import Check, CheckResult, OpenContext

OK = CheckResult(status="ok", message="fine")
SECRET = "hunter2"


@pytest.fixture
def context(tmp_path: Path) -> OpenContext:
    return OpenContext(state_dir=tmp_path, runtime_dir=tmp_path, home=tmp_path, environ={"A": "1"})


def host(*checks: Check) -> PluginHost:
    @hookimpl
    def iii_checks() -> Any:
        yield from checks

    return PluginHost.create(installed=False, plugins=[SimpleNamespace(iii_checks=iii_checks)])


async def good(context: OpenContext) -> CheckResult:
    await trio.lowlevel.checkpoint()
    return CheckResult(status="warning", message=f"A is {context.environ['A']}", hint="unset A")


async def broken(_: OpenContext) -> CheckResult:
    await trio.lowlevel.checkpoint()
    raise ExceptionGroup("", [ValueError(SECRET)])


async def refusing(_: OpenContext) -> CheckResult:
    await trio.lowlevel.checkpoint()
    raise ConfigError("no", hint="do")


async def answering_nonsense(_: OpenContext) -> Any:
    await trio.lowlevel.checkpoint()
    return CheckResult(status="splendid", message="x")  # type: ignore[arg-type]


async def answering_nothing(_: OpenContext) -> Any:
    await trio.lowlevel.checkpoint()


async def stuck(_: OpenContext) -> CheckResult:
    await trio.sleep_forever()
    return OK


def not_async(_: OpenContext) -> Any:
    return OK


async def test_rows_are_in_order_and_say_whose_they_are(context: OpenContext) -> None:
    rows = await examine(
        [Check(name="core", run=good)], host(Check(name="b", run=good), Check(name="a", run=good)), context
    )
    assert [(row.name, row.distribution) for row in rows] == [
        ("core", "iii-core"),
        ("b", "this program"),
        ("a", "this program"),
    ]
    assert rows[1].as_json() == {
        "name": "b", "distribution": "this program", "status": "warning", "message": "A is 1", "hint": "unset A",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (broken, "the check itself is broken: ValueError"),
        (refusing, "[W131] no"),
        (answering_nonsense, "the check itself is broken: it answered CheckResult"),
        (answering_nothing, "the check itself is broken: it answered NoneType"),
        (not_async, "the check itself is broken: TypeError at doctor.py"),
        (stuck, "no answer within 0.2 s"),
    ],
)
async def test_a_broken_check_is_a_failed_row(context: OpenContext, run: Any, message: str) -> None:
    rows = await examine([], host(Check(name="bad", run=run), Check(name="good", run=good)), context, timeout=0.2)
    assert [row.result.status for row in rows] == ["failed", "warning"]
    assert rows[0].result.message.startswith(message)
    assert SECRET not in rows[0].result.message


async def test_they_run_at_once(context: OpenContext) -> None:
    met = trio.Event()

    async def waits(_: OpenContext) -> CheckResult:
        await met.wait()
        return OK

    async def comes(_: OpenContext) -> CheckResult:
        met.set()
        await trio.lowlevel.checkpoint()
        return OK

    rows = await examine([Check(name="waits", run=waits)], host(Check(name="comes", run=comes)), context, timeout=5)
    assert [row.result.status for row in rows] == ["ok", "ok"]


async def test_a_plugin_whose_hook_raises_has_no_rows(context: OpenContext) -> None:
    @hookimpl
    def iii_checks() -> Any:
        yield Check(name="first", run=good)
        raise RuntimeError(SECRET)

    plugins = PluginHost.create(installed=False, plugins=[SimpleNamespace(iii_checks=iii_checks)])
    assert await examine([], plugins, context) == []
    assert [info.status for info in plugins.plugins] == ["failed"]


def test_where_sockets_cannot_be_there_are_still_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_place(project: Project) -> Path:
        raise EngineError("no private folder for sockets")

    monkeypatch.setattr("iii_core.project.scratch.runtime_dir", no_place)
    project = locate_project(environ={"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}, cwd=tmp_path)
    with doctor_folders(project) as context:
        assert context.runtime_dir.parent.parent == tmp_path
        context.runtime_dir.mkdir()
    assert list(tmp_path.iterdir()) == []


async def leaving(_: OpenContext) -> CheckResult:
    await trio.lowlevel.checkpoint()
    raise SystemExit(3)


async def leaving_in_a_group(_: OpenContext) -> CheckResult:
    await trio.lowlevel.checkpoint()
    raise BaseExceptionGroup("", [SystemExit(3)])


async def test_a_check_that_exits_is_a_row(context: OpenContext) -> None:
    plugins = host(Check(name="leaving", run=leaving), Check(name="group", run=leaving_in_a_group))
    rows = await examine([Check(name="good", run=good)], plugins, context)
    assert [(row.name, row.result.status) for row in rows] == [
        ("good", "warning"),
        ("leaving", "failed"),
        ("group", "failed"),
    ]
    assert rows[1].result.message.startswith("the check itself is broken: SystemExit at test_doctor.py:")


async def test_an_interrupt_is_no_row(context: OpenContext) -> None:
    async def interrupted(_: OpenContext) -> CheckResult:
        await trio.lowlevel.checkpoint()
        raise KeyboardInterrupt

    with pytest.RaisesGroup(KeyboardInterrupt):
        await examine([Check(name="interrupted", run=interrupted)], host(), context)
