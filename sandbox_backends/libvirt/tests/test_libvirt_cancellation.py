"""``create``, ``start``, ``stop`` and ``destroy``, cancelled where they wait: nothing is left, ever."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from iii_core.sandbox.port import RootImage

from .vmkit import HERE, HOME, python

pytestmark = [
    pytest.mark.integration,
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root has mounts to leave behind"),
]


@pytest.mark.parametrize(
    "method", ["create", "start", "stop", "destroy", "start-egress", "start-mounts", "stop-mounts"]
)
def test_cancelled(image: RootImage, kernel: Path, tmp_path: Path, method: str) -> None:
    command = ["unshare", "--mount", *python(HERE / "cancelrunner.py", image.path, HOME, tmp_path, method)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=580)
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    problems = {step["step"]: step["problem"] for step in steps if step["problem"]}
    assert problems == {}
    assert done.returncode == 0, done.stderr
    assert len(steps) > 2
    assert [step["cut"] for step in steps] == [True] * (len(steps) - 1) + [False]
