"""A command whose client leaves, and what becomes of what it has begun."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from iii_core.app.application import Application, open_application
from iii_core.app.background import finish_in
from iii_core.app.watch import FileWatch
from iii_core.control.client import open_stream
from iii_core.errors import EngineError, WorkerNotRunning
from iii_core.host import PluginHost
from iii_core.project.locate import Project

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def project(tmp_path: Path) -> Project:
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    made = Project(
        config_path=tmp_path / "config.yaml", home=tmp_path / "home", environ={"XDG_RUNTIME_DIR": str(runtime)}
    )
    made.config_path.write_text(
        "workers:\n- {name: iii-worker-manager, config: {port: 0}}\n- {name: w, image: 'docker-archive:missing.tar'}\n"
    )
    return made


async def remove_and_leave(application: Application) -> None:
    """Ask for the removal of ``w``, and leave when config.yaml is written and nothing more is done."""
    project = application.project
    async with application._reloading:
        with closing(FileWatch(project.root, ("config.yaml",))) as watch:
            async with open_stream(project, "worker.remove", {"names": ["w"]}):
                with trio.fail_after(30):
                    await watch.changed()
        await removal_waits(application)


async def removal_waits(application: Application) -> None:
    """Wait until the removal has got as far as the lock that the test holds."""
    with trio.fail_after(30):
        while not application._reloading.statistics().tasks_waiting:  # noqa: ASYNC110 - a lock tells nobody
            await trio.sleep(0.005)


@pytest.mark.usefixtures("transport")
async def test_a_removal_that_nobody_waits_for_is_finished(project: Project) -> None:
    layer = project.state_dir / "writable" / "w"
    async with open_application(project, PluginHost.create()) as application:
        layer.mkdir(parents=True)
        await remove_and_leave(application)
        await application.reload()  # comes after the one of the removal
        assert list(application.manager.workers) == []
        assert not layer.exists()


@pytest.mark.usefixtures("transport")
async def test_so_it_is_where_the_engine_ends_before(project: Project) -> None:
    layer = project.state_dir / "writable" / "w"
    async with open_application(project, PluginHost.create()) as application:
        layer.mkdir(parents=True)
        await application._reloading.acquire()
        with closing(FileWatch(project.root, ("config.yaml",))) as watch:
            async with open_stream(project, "worker.remove", {"names": ["w"]}):
                with trio.fail_after(30):
                    await watch.changed()
        await removal_waits(application)
        application._reloading.release()
    assert not layer.exists()
    async with open_application(project, PluginHost.create()):
        pass
    assert list(layer.parent.iterdir()) == []


async def test_work_goes_on_without_whoever_asked_for_it(caplog: pytest.LogCaptureFixture) -> None:
    go_on, done = trio.Event(), trio.Event()

    async def work() -> None:
        await go_on.wait()
        done.set()
        raise WorkerNotRunning("told to nobody")

    async with trio.open_nursery() as nursery:
        with trio.move_on_after(0.01):
            await finish_in(nursery, work)
        go_on.set()
        with trio.fail_after(5):
            await done.wait()
    assert "could not be finished: told to nobody" in caplog.text


async def test_what_fails_is_told_to_who_waits_and_so_is_the_end_of_everything() -> None:
    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise WorkerNotRunning("no")

    async def ask(scope: trio.CancelScope) -> None:
        with pytest.raises(WorkerNotRunning, match="no"):
            await finish_in(scope_of, fail)
        with pytest.raises(EngineError, match="the engine ends"):
            await finish_in(scope_of, trio.sleep_forever)

    async with trio.open_nursery() as outer, trio.open_nursery() as scope_of:
        outer.start_soon(ask, scope_of.cancel_scope)  # noqa: ASYNC111 - it is to outlive that nursery
        await trio.testing.wait_all_tasks_blocked()
        scope_of.cancel_scope.cancel()
