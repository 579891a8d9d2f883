"""`make demo` works."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from iiitools.worktree import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]  # the first build of the image downloads packages


def test_the_demo_runs_to_its_end_and_leaves_nothing() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "demo.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tools")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=380,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing is left running or mounted" in done.stdout
