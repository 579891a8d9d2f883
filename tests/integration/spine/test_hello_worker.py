"""The TypeScript worker of the guide: registerWorker, Logger, run by tsx from a Node image in a sandbox (seed 000)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from iiitools.workerimages import build_hello_worker

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import IIIProject
    from iiitools.registry import Registry

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]  # the first build asks npm for packages


def test_a_typescript_worker_answers_logs_and_stops(project: IIIProject, registry: Registry, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    build_hello_worker(layout, tag="1.0")
    reference = registry.push(layout, "1.0", "hello-worker:1.0")
    project.start()
    project.ok("worker", "add", reference, timeout=150)
    assert "FOO: bar" in project.config.read_text()
    project.wait_callable("my-worker::hello")
    assert json.loads(project.ok("trigger", "my-worker::hello", "name=you")) == {"message": "Hello!"}
    project.ok("worker", "stop", "-y", "hello-worker")
    log = (project.folder / ".iii" / "logs" / "hello-worker" / "worker.log").read_text()
    assert "worker exited with" in log
    assert "signal 9" not in log.splitlines()[-1], "SIGTERM was enough"
