"""``iii worker stats``: what a real worker in a real sandbox uses."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from typing import Any

import pytest

from iiitools.waiting import PATIENCE, wait_until

from .conftest import III, WORKER, IIIProject

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]
MIB = 1 << 20


def row(project: IIIProject) -> dict[str, Any]:
    (found,) = json.loads(project.ok("worker", "stats", WORKER, "--json"))["workers"]
    return dict(found)


def test_a_worker_at_rest(running: IIIProject) -> None:
    found: dict[str, Any] = {}

    def is_at_rest() -> bool:  # it has only just come to run
        nonlocal found
        found = row(running)
        return found["cpu_percent"] is not None and found["cpu_percent"] < 50

    wait_until(is_at_rest, told=lambda: found)
    assert (found["name"], found["status"], found["note"]) == (WORKER, "running", None)
    assert found["backend"] == running.status()["backend"]
    assert found["cpu_percent"] >= 0
    assert found["cpu_seconds"] > 0
    assert MIB < found["memory"] < 512 * MIB
    assert found["processes"] >= 1
    assert found["disk"] >= 0
    assert found["network"]["sent"] > 0, "it registered with the engine"
    assert found["network"]["received"] > 0


def test_what_it_does_shows(running: IIIProject) -> None:
    before = row(running)
    write = "dd if=/dev/urandom of=/workspace/stats bs=1M count=8 2>/dev/null"
    running.ok("worker", "exec", WORKER, "--", "sh", "-c", write)
    running.assert_callable()
    running.assert_callable()
    with running.session("worker", "exec", WORKER, "--", "sh", "-c", "echo on; while :; do :; done") as busy:
        assert busy.stdout is not None
        assert busy.stdout.readline() == b"on\n"
        after = row(running)
    assert after["cpu_percent"] > 5, "however busy this machine is"
    assert after["processes"] > before["processes"]
    assert after["disk"] - before["disk"] >= 8 * MIB
    assert after["network"]["received"] > before["network"]["received"]
    assert after["network"]["sent"] > before["network"]["sent"]
    running.ok("worker", "exec", WORKER, "--", "rm", "/workspace/stats")


def test_for_people(running: IIIProject) -> None:
    done = running.run("worker", "stats")
    assert (done.returncode, done.stdout) == (0, b"")
    head, _, line = done.stderr.decode().splitlines()
    assert head.split() == ["NAME", "STATUS", "CPU", "MEMORY", "PROCESSES", "DISK", "RECEIVED", "SENT"]
    assert line.split()[:2] == [WORKER, "running"]
    assert "%" in line


def test_it_follows(running: IIIProject) -> None:
    with running.session("worker", "stats", "--follow", "--json") as process:
        assert process.stdout is not None
        for _ in range(2):
            assert json.loads(process.stdout.readline())["workers"][0]["name"] == WORKER
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0


def test_it_redraws_on_a_terminal(running: IIIProject) -> None:
    master, slave = pty.openpty()
    with subprocess.Popen(
        [III, "worker", "stats", "-f"], cwd=running.folder, env={**running.environ, "TERM": "xterm"}, stderr=slave
    ) as process:
        os.close(slave)
        shown = b""
        while b"\x1b[3F\x1b[J" not in shown:  # three lines up: head, line, row
            shown += os.read(master, 4096)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
    os.close(master)


def test_a_stopped_worker_has_a_disk_and_nothing_else(running: IIIProject) -> None:
    running.ok("worker", "stop", WORKER, "-y")
    found = row(running)
    assert found["status"] == "stopped"
    assert [found[fact] for fact in ("cpu_percent", "memory", "processes", "network")] == [None] * 4
    assert found["disk"] >= 0
    assert " - " in running.run("worker", "stats").stderr.decode().splitlines()[-1]
    running.ok("worker", "start", WORKER)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope"], "[W112]"),
        (["../x"], "[W100]"),
        (["iii-worker-manager"], "lives inside the engine"),
    ],
)
def test_bad_names(running: IIIProject, arguments: list[str], said: str) -> None:
    done = running.run("worker", "stats", *arguments)
    assert done.returncode != 0
    assert done.stdout == b""
    assert said in done.stderr.decode()


def test_without_an_engine(project: IIIProject) -> None:
    done = project.run("worker", "stats")
    assert done.returncode == 1
    assert "[W201]" in done.stderr.decode()
