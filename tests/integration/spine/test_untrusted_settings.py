"""What an image says of itself, and what somebody writes by mistake, under a real engine."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from iiitools.waiting import wait_until
from iiitools.workerimages import build_math_worker

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import IIIProject

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]
NAME = "math-worker"
SECRET = "s3cr3t-of-the-engine"


def environment(project: IIIProject) -> dict[str, str]:
    """What a command in the worker's sandbox has; nothing while there is none."""
    said = project.run("worker", "exec", NAME, "--", "env").stdout.decode()
    return dict(line.split("=", 1) for line in said.splitlines())


def test_an_image_does_not_read_the_engines_environment(project: IIIProject, tmp_path: Path) -> None:
    says = {"LEAK": "${SECRET_TOKEN}", "API_URL": "http://evil/?t=${SECRET_TOKEN}&u=$${SECRET_TOKEN:x}"}
    layout = tmp_path / NAME
    build_math_worker(layout, tag="1", env=says)
    project.environ["SECRET_TOKEN"] = SECRET
    project.start()
    project.ok("worker", "add", f"oci:{layout}:1")
    assert says.items() <= environment(project).items()
    project.config.write_text(project.config.read_text().replace("LEAK: $$", "LEAK: $"))
    wait_until(lambda: environment(project).get("LEAK") == SECRET, told=project.engine_log)
    project.wait_running()


BAD = {
    "sandbox: {memory: 99999999999999999999}": "expected 16 to",
    "resources: {memory: 99999999999999999999}": "a sandbox cannot have a limit of memory",
    'env: {"A=B": x}': "is no name of an environment variable",
    'env: {C: "a\\0b"}': "holds a NUL character",
    "env: {III_URL: 'ws://u:${SECRET_TOKEN}@evil/?t=${SECRET_TOKEN}'}": "III_URL (ws://evil) leads elsewhere",
    "sandbox: {mounts: ['/usr:/run/iii']}": "/run/iii cannot be mounted",
    "sandbox: {mounts: ['/nope:/x']}": "/nope is to be mounted, and is no folder",
    "sandbox: {ports: ['ENGINE:80']}": "of this machine is the engine's own",
    "sandbox: {ports: ['42777:ENGINE']}": "inside is the engine's",
    "sandbox: {user: 4000000000}": "ids are 0 to 65535",
}


def test_a_running_worker_goes_on_whatever_is_written(project: IIIProject, tmp_path: Path) -> None:
    layout = tmp_path / NAME
    build_math_worker(layout, tag="1")
    project.environ["SECRET_TOKEN"] = SECRET
    project.start()
    project.ok("worker", "add", f"oci:{layout}:1")
    project.wait_callable()
    before = project.row()["pid"]
    good = project.config.read_text()
    head, at, tail = re.sub(r"    resources:\n(      .*\n)+", "", good).partition(f"  - name: {NAME}\n")
    for bad, told in BAD.items():
        project.config.write_text(f"{head}{at}    {bad.replace('ENGINE', str(project.port))}\n{tail}")
        facts = project.wait_for(lambda facts, told=told: any(told in note for note in facts["notes"]))
        assert (facts["status"], facts["pid"], facts["restarts"]) == ("running", before, 0), bad
        assert SECRET not in json.dumps(facts)
    assert SECRET not in project.engine_log()
    project.config.write_text(good)
    project.wait_for(lambda facts: not any("not in use" in note for note in facts["notes"]))
    project.assert_callable()


def test_add_does_not_wait_two_minutes_for_one_that_crashes(project: IIIProject, tmp_path: Path) -> None:
    layout = tmp_path / NAME
    build_math_worker(layout, tag="1", env={"PYTHONHOME": "/nowhere"})
    project.start()
    done = project.run("worker", "add", f"oci:{layout}:1")  # which has less than two minutes here
    assert done.returncode == 1
    assert b"added, but it does not run: worker 'math-worker' ended with" in done.stderr
    assert b"it has failed 3 times in a row and is tried again: see 'iii worker logs math-worker" in done.stderr
    assert project.row()["status"] not in ("failed", "stopped")
