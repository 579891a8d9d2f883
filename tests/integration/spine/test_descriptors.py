"""Idle connections never use up the engine's descriptors: commands and workers go on."""

from __future__ import annotations

import re
import resource
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from iiitools.waiting import wait_until

from .conftest import CALL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iiitools.registry import Registry

    from .conftest import IIIProject

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]
NAME = "math-worker"
IDLE = 1100
LIMIT = 1024
SERVER = """
import socket
with socket.create_server(("127.0.0.1", 8000), backlog=128) as server:
    taken = []
    while True:
        taken.append(server.accept()[0])
"""
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Let this program hold the clients."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < IDLE + 500:
        pytest.skip(f"this test needs {IDLE + 500} descriptors, and the hard limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, IDLE + 500), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def assert_well(project: IIIProject, said_before: int) -> None:
    """Commands answer, the worker still has its connection, and nothing has been said at length."""
    assert project.engine is not None
    assert open_files(project.engine.pid) < LIMIT * 4 // 5
    project.ok("worker", "exec", NAME, "--", "true")
    assert project.row()["status"] == "running"
    assert project.status()["restarts"] == 0
    said = project.log.read_text()[said_before:]
    assert "Traceback" not in said
    assert len(said.splitlines()) < 20, said[-3000:]


@pytest.mark.usefixtures("many_descriptors")
def test_idle_connections_leave_descriptors_for_commands_and_workers(
    project: IIIProject, registry: Registry, port: int
) -> None:
    project.config.write_text(
        f"workers:\n  - name: iii-worker-manager\n    config: {{port: {project.port}}}\n"
        f"  - name: {NAME}\n    image: {registry.address}/math-worker:1.0\n"
        f'    sandbox:\n      ports: ["{port}:8000"]\n'
    )
    project.wrapper = ["prlimit", f"--nofile=256:{LIMIT}"]
    project.start()
    project.wait_running()
    assert project.engine is not None
    for pid in (project.engine.pid, project.sandbox_host().pid):
        assert re.search(rf"Max open files +{LIMIT} +{LIMIT}", Path(f"/proc/{pid}/limits").read_text())
    said = len(project.log.read_text())
    with project.session("worker", "exec", NAME, "--", "python3", "-c", SERVER):
        project.ok("worker", "exec", NAME, "--", "sh", "-c", "until grep -q :1F40 /proc/net/tcp; do sleep 0.1; done")
        with ExitStack() as clients:
            for _ in range(IDLE):
                clients.enter_context(socket.create_connection(("127.0.0.1", port)))
            assert_well(project, said)

    with ExitStack() as clients:
        for number in range(IDLE):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", project.port)))
            if number % 2:
                client.sendall(UPGRADE)
        time.sleep(1)
        assert_well(project, said)
    wait_until(lambda: project.run(*CALL, "--port", str(project.port)).returncode == 0, told=project.engine_log)
