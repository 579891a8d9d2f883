"""The engine in the foreground: what it takes up by itself."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from iii_core.app import foreground
from iii_core.app.application import open_application
from iii_core.host import PluginHost
from iii_core.project.locate import Project

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from iii_core.app.application import Application


@pytest.mark.usefixtures("transport")
async def test_a_change_while_it_starts_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """config.yaml has been read then, and nobody has begun to wait for changes."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    project = Project(
        config_path=tmp_path / "config.yaml", home=tmp_path / "home", environ={"XDG_RUNTIME_DIR": str(runtime)}
    )
    before = "workers:\n- {name: iii-worker-manager, config: {port: 0}}\n"
    project.config_path.write_text(before)
    started: list[Application] = []

    @asynccontextmanager
    async def open_and_change(project: Project, plugins: PluginHost) -> AsyncGenerator[Application]:
        async with open_application(project, plugins) as application:
            project.config_path.write_text(before + "- {name: w, image: 'docker-archive:missing.tar'}\n")
            started.append(application)
            yield application

    monkeypatch.setattr(foreground, "open_application", open_and_change)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(foreground._run, project, PluginHost.create())
        with trio.fail_after(30):
            while not started or started[0].config.find("w") is None:  # noqa: ASYNC110 - a file is taken up unseen
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
