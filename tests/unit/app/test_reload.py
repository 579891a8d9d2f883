"""What a reload of config.yaml changes around the engine."""

from __future__ import annotations

import socket
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from iii_core.app.application import open_application
from iii_core.errors import AddressInUse
from iii_core.host import PluginHost
from iii_core.project.locate import Project, read_record
from iiitools.ports import reserved_port

pytestmark = pytest.mark.usefixtures("transport")


def configure(project: Project, port: int) -> None:
    project.config_path.write_text(f"workers:\n  - name: iii-worker-manager\n    config:\n      port: {port}\n")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    return Project(
        config_path=tmp_path / "config.yaml", home=tmp_path / "home", environ={"XDG_RUNTIME_DIR": str(runtime)}
    )


async def test_commands_are_told_of_a_port_that_a_reload_changed(project: Project) -> None:
    async with AsyncExitStack() as stack:
        first, second = (stack.enter_context(reserved_port()) for _ in range(2))
        configure(project, first)
        application = await stack.enter_async_context(open_application(project, PluginHost.create()))
        before = read_record(project)
        configure(project, second)
        await application.reload()
        after = read_record(project)
        with socket.create_server(("127.0.0.1", first)) as taken:
            configure(project, taken.getsockname()[1])
            with pytest.raises(AddressInUse):
                await application.reload()
            assert read_record(project) == after, "what is in force"
    assert before is not None
    assert after is not None
    assert (before.port, after.port) == (first, second)
    assert (before.control, before.pid) == (after.control, after.pid)
    assert read_record(project) is None
