"""Commands and engines that are told to end leave nothing behind."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import psutil
import pytest

from iiitools.processes import still_running
from iiitools.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import IIIProject

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


class SilentRegistry:
    """Takes connections and says nothing. ``asked`` is set by the first."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"localhost:{self._server.getsockname()[1]}"
        self.asked = threading.Event()
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        taken: list[socket.socket] = []
        try:
            while True:
                taken.append(self._server.accept()[0])
                self.asked.set()
        except OSError:
            for connection in taken:
                connection.close()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()


@pytest.fixture
def silent() -> Iterator[SilentRegistry]:
    registry = SilentRegistry()
    yield registry
    registry.close()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)], ids=str
)
def test_a_pull_that_is_told_to_end_cleans_up(
    new_project: Callable[[Path, Path], IIIProject], tmp_path: Path, silent: SilentRegistry, number: int, code: int
) -> None:
    (tmp_path / "project").mkdir()
    project = new_project(tmp_path / "project", tmp_path / "home")
    before = project.config.read_bytes()
    adding = project.popen("worker", "add", f"{silent.address}/x/y:1")
    assert silent.asked.wait(PATIENCE)
    helpers = psutil.Process(adding.pid).children(recursive=True)
    assert helpers
    adding.send_signal(number)
    said = adding.communicate(timeout=PATIENCE)[1].decode()
    assert adding.returncode == code
    assert "Traceback" not in said
    assert "error" not in said
    assert not still_running(helpers)
    assert list((project.home / "images" / "staging").iterdir()) == []
    assert list((project.runtime / "iii").iterdir()) == []
    assert project.config.read_bytes() == before


def test_a_pull_outlives_a_terminal_with_nohup(
    new_project: Callable[[Path, Path], IIIProject], tmp_path: Path, silent: SilentRegistry
) -> None:
    (tmp_path / "project").mkdir()
    project = new_project(tmp_path / "project", tmp_path / "home")
    project.wrapper = ["nohup"]
    adding = project.popen("worker", "add", f"{silent.address}/x/y:1")
    assert silent.asked.wait(PATIENCE)
    adding.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        adding.wait(1)
    adding.send_signal(signal.SIGTERM)
    adding.communicate(timeout=PATIENCE)
    assert adding.returncode == 143


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=str)
def test_an_engine_that_ends_leaves_no_runtime_folder(project: IIIProject, how: int) -> None:
    """SIGHUP is what it gets when its terminal is closed."""
    project.start()
    assert list((project.runtime / "iii").glob("*/control.sock"))
    assert project.stop(how) == 0
    assert list((project.runtime / "iii").iterdir()) == []


def test_an_engine_outlives_a_terminal_with_nohup(project: IIIProject) -> None:
    project.wrapper = ["nohup"]
    project.start()
    assert project.engine is not None
    project.engine.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        project.engine.wait(1)
    assert project.stop() == 0
