"""The main job, end to end: an OCI image becomes a worker that answers calls; then all that can be done to it."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from conftest import IIIProject
    from iiitools.registry import Registry

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]
NAME = "math-worker"


def row(project: IIIProject, name: str = NAME) -> dict[str, Any]:
    listed = json.loads(project.ok("worker", "list", "--json"))
    rows = listed["workers"] if isinstance(listed, dict) else listed
    return next(row for row in rows if row["name"] == name)


def add(project: IIIProject) -> Any:
    return json.loads(project.ok("trigger", "math::add", "a=2", "b=3"))


def wait_for_status(project: IIIProject, *statuses: str) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while (found := row(project))["status"] not in statuses:
        assert time.monotonic() < deadline, (found, project.engine_log())
        time.sleep(0.1)
    return found


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def all_gone(processes: list[psutil.Process], within: float = 15) -> bool:
    return not psutil.wait_procs(processes, timeout=within)[1]


def test_add_call_inspect_stop_start_remove(project: IIIProject, registry: Registry) -> None:
    project.start()
    project.ok("worker", "add", f"{registry.address}/math-worker:1.0")
    assert f"image: {registry.address}/math-worker:1.0" in project.config.read_text()
    assert 'OTEL_ENABLED: "false"' in project.config.read_text().replace("'", '"')
    assert add(project) == {"sum": 5}

    found = row(project)
    assert (found["status"], found["type"], found["isolation"]) == ("running", "oci", "namespaces")
    status = json.loads(project.ok("worker", "status", NAME, "--json"))
    assert status["status"] == "running"
    assert status["image"]["digest"].startswith("sha256:")
    logs = project.run("worker", "logs", NAME)
    assert b"adding 2 and 3" in logs.stdout
    assert project.ok("worker", "exec", NAME, "--", "uname", "-s") == "Linux\n"

    assert project.run("worker", "stop", NAME).returncode == 1, "nobody can be asked, and -y was not given"
    project.ok("worker", "stop", "-y", NAME)
    assert row(project)["status"] == "stopped"
    assert project.run("trigger", "math::add", "a=2", "b=3").returncode == 1
    project.ok("worker", "start", NAME)
    assert add(project) == {"sum": 5}
    before = row(project)["pid"]
    project.ok("worker", "restart", NAME)
    assert row(project)["pid"] != before
    assert add(project) == {"sum": 5}

    children = descendants(project.engine.pid)  # type: ignore[union-attr]
    project.ok("worker", "remove", "-y", NAME)
    assert NAME not in project.config.read_text()
    assert not (project.folder / ".iii" / "writable" / NAME).exists()
    assert not [p for p in children if p.is_running() and p.name() in ("bwrap", "agent", "python3")]
    assert project.stop() == 0
    assert all_gone(children)


def test_a_warm_add_asks_the_registry_for_no_layer(project: IIIProject, registry: Registry) -> None:
    project.ok("worker", "add", f"{registry.address}/math-worker:1.0")  # without an engine: files only
    asked = len(registry.requests())
    project.ok("worker", "remove", "-y", NAME)
    project.ok("worker", "add", f"{registry.address}/math-worker:1.0")
    assert not [line for line in registry.requests()[asked:] if "/blobs/" in line]


def test_the_users_config_wins_over_the_image_and_reaches_the_worker(project: IIIProject, registry: Registry) -> None:
    project.ok("worker", "add", f"{registry.address}/math-worker:1.0")
    text = project.config.read_text()
    project.config.write_text(re.sub(r"( *)OTEL_ENABLED: .*", r'\1OTEL_ENABLED: "no" # mine\n\1deep: {key: [1]}', text))
    project.ok("worker", "add", f"{registry.address}/math-worker:1.0")
    assert '"no" # mine' in project.config.read_text()
    project.start()
    wait_for_status(project, "running")
    env = dict(line.split("=", 1) for line in project.ok("worker", "exec", NAME, "--", "env").splitlines())
    assert env["OTEL_ENABLED"] == "no"
    assert env["DEEP_KEY"] == "[1]"
    assert env["III_WORKER_NAME"] == NAME
    assert env["III_ISOLATION"] == "namespaces"
    assert env["III_URL"] == env["III_ENGINE_URL"] == f"ws://127.0.0.1:{project.port}"


def test_a_killed_worker_comes_back_and_its_story_is_kept(running: IIIProject) -> None:
    before = row(running)
    running.run("worker", "exec", NAME, "--", "sh", "-c", "kill -9 $(ps | awk '/worker.py/ && !/awk/ {print $1}')")
    deadline = time.monotonic() + 30
    while json.loads(running.ok("worker", "status", NAME, "--json"))["restarts"] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    wait_for_status(running, "running")
    assert add(running) == {"sum": 5}
    status = json.loads(running.ok("worker", "status", NAME, "--json"))
    assert "9" in status["last_exit"]
    assert row(running)["pid"] != before["pid"]
    assert (running.folder / ".iii" / "logs" / NAME / "stderr.log.1").exists()


def test_sigterm_to_the_engine_is_orderly_and_leaves_nothing(project: IIIProject, registry: Registry) -> None:
    project.ok("worker", "add", f"{registry.address}/math-worker:1.0")
    project.start()
    wait_for_status(project, "running")
    children = descendants(project.engine.pid)  # type: ignore[union-attr]
    assert children
    assert project.stop() == 0
    assert all_gone(children)
    log = (project.folder / ".iii" / "logs" / NAME / "stderr.log").read_text()
    assert "worker exited with" in log, "the worker itself got SIGTERM and its time"


def test_sigkill_of_the_engine_leaves_nothing_and_the_next_one_works(project: IIIProject, registry: Registry) -> None:
    project.ok("worker", "add", f"{registry.address}/math-worker:1.0")
    project.start()
    wait_for_status(project, "running")
    children = descendants(project.engine.pid)  # type: ignore[union-attr]
    project.stop(signal.SIGKILL)
    assert all_gone(children)
    project.start()
    wait_for_status(project, "running")
    assert add(project) == {"sum": 5}


def test_the_sandbox_host_may_die(project: IIIProject, registry: Registry) -> None:
    """The engine says so, starts another one and restarts the workers (design §5)."""
    project.ok("worker", "add", f"{registry.address}/math-worker:1.0")
    project.start()
    before = wait_for_status(project, "running")["pid"]
    children = descendants(project.engine.pid)  # type: ignore[union-attr]
    next(p for p in children if "iii_core.sandbox.hostproc" in " ".join(p.cmdline())).kill()
    assert all_gone(children)
    assert "the sandbox host died" in project.engine_log()
    deadline = time.monotonic() + 30
    while (found := row(project))["status"] != "running" or found["pid"] == before:
        assert time.monotonic() < deadline, (found, project.engine_log())
        time.sleep(0.1)
    assert add(project) == {"sum": 5}


@pytest.mark.long
def test_an_idle_worker_stays(running: IIIProject) -> None:
    before = row(running)["pid"]
    time.sleep(30)  # the very point of this test is that nothing happens for 30 s
    assert row(running)["pid"] == before
    assert add(running) == {"sum": 5}


def test_hot_reload_keeps_the_last_good_configuration(project: IIIProject, registry: Registry) -> None:
    project.start()
    good = project.config.read_text()
    project.config.write_text(good + "  - name: [broken\n")
    deadline = time.monotonic() + 10
    while "not used" not in project.engine_log():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "W131" in project.engine_log()
    project.config.write_text(good + f"  - name: {NAME}\n    image: {registry.address}/math-worker:1.0\n")
    deadline = time.monotonic() + 10
    while NAME not in project.ok("worker", "list", "--json"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    wait_for_status(project, "running")
    project.config.write_text(good)
    deadline = time.monotonic() + 20
    while NAME in project.ok("worker", "list", "--json"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert Path(project.config).read_text() == good
