"""The main job, end to end: an OCI image becomes a worker that answers calls; then all that can be done to it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from iiitools.processes import still_running
from iiitools.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from conftest import IIIProject
    from iiitools.registry import Registry

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]
NAME = "math-worker"


def test_add_call_inspect_stop_start_remove(project: IIIProject, registry: Registry) -> None:
    project.start()
    project.ok("worker", "add", f"{registry.address}/math-worker:1.0")
    assert f"image: {registry.address}/math-worker:1.0" in project.config.read_text()
    assert 'OTEL_ENABLED: "false"' in project.config.read_text().replace("'", '"')
    project.wait_callable()
    project.assert_callable()

    found = project.row()
    assert (found["status"], found["type"], found["isolation"]) == ("running", "oci", "namespaces")
    status = json.loads(project.ok("worker", "status", NAME, "--json"))
    assert status["status"] == "running"
    assert status["image"]["digest"].startswith("sha256:")
    project.wait_logged("adding 2 and 3")
    assert project.ok("worker", "exec", NAME, "--", "uname", "-s") == "Linux\n"

    assert project.run("worker", "stop", NAME).returncode == 1, "nobody can be asked, and -y was not given"
    project.ok("worker", "stop", "-y", NAME)
    assert project.row()["status"] == "stopped"
    assert project.run("trigger", "math::add", "a=2", "b=3").returncode == 1
    project.ok("worker", "start", NAME)
    project.wait_callable()
    project.assert_callable()
    before = project.row()["pid"]
    project.ok("worker", "restart", NAME)
    assert project.row()["pid"] != before
    project.wait_callable()
    project.assert_callable()

    children = project.descendants()
    launcher = psutil.Process(project.row()["pid"])
    sandbox = [launcher, *launcher.children(recursive=True)]
    assert {"bwrap", "agent", "python3"} <= {process.name() for process in sandbox}
    project.ok("worker", "remove", "-y", NAME)
    assert NAME not in project.config.read_text()
    assert not (project.folder / ".iii" / "writable" / NAME).exists()
    assert not still_running(sandbox)
    assert project.stop() == 0
    assert not still_running(children, within=PATIENCE)
    assert list((project.runtime / "iii").iterdir()) == []


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
    project.wait_running()
    env = dict(line.split("=", 1) for line in project.ok("worker", "exec", NAME, "--", "env").splitlines())
    assert env["OTEL_ENABLED"] == "no"
    assert env["DEEP_KEY"] == "[1]"
    assert env["III_WORKER_NAME"] == NAME
    assert env["III_ISOLATION"] == "namespaces"
    assert env["III_URL"] == env["III_ENGINE_URL"] == f"ws://127.0.0.1:{project.port}"


def test_sigterm_to_the_engine_is_orderly_and_leaves_nothing(project: IIIProject, registry: Registry) -> None:
    project.ok("worker", "add", f"{registry.address}/math-worker:1.0")
    project.start()
    project.wait_running()
    children = project.descendants()
    assert children
    assert project.stop() == 0
    assert not still_running(children, within=PATIENCE)
    log = (project.folder / ".iii" / "logs" / NAME / "worker.log").read_text()
    assert "worker exited with" in log, "the worker itself got SIGTERM and its time"


def test_hot_reload_keeps_the_last_good_configuration(project: IIIProject, registry: Registry) -> None:
    project.start()
    good = project.config.read_text()
    project.config.write_text(good + "  - name: [broken\n")
    project.wait_said("not used")
    assert "W131" in project.engine_log()
    project.config.write_text(good + f"  - name: {NAME}\n    image: {registry.address}/math-worker:1.0\n")
    wait_until(lambda: NAME in project.ok("worker", "list", "--json"), told=project.engine_log)
    project.wait_running()
    project.config.write_text(good)
    wait_until(lambda: NAME not in project.ok("worker", "list", "--json"), told=project.engine_log)
    assert Path(project.config).read_text() == good
