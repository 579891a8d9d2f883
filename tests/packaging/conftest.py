"""The wheels of all distributions, built once for the tests that look at them or install them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from iiitools.worktree import ROOT, distributions


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Distribution name → the wheel built from the work tree."""
    out = tmp_path_factory.mktemp("wheels")
    command: list[str | Path] = [ROOT / "tools" / "uv", "build", "--all-packages", "--wheel", "--out-dir", out]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    built = {path.name.partition("-")[0]: path for path in out.glob("*.whl")}
    return {distribution.name: built.get(distribution.package, out / "missing") for distribution in distributions()}
