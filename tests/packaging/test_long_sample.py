"""`make test` runs a seeded sample of the long tests, and says which seed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from iiitools.sampling import ONE_IN
from iiitools.worktree import ROOT

pytestmark = pytest.mark.timeout(240)  # some run pytest several times
SUITE = """
import pytest

@pytest.mark.long
@pytest.mark.parametrize("number", range({count}))
def test_long(number): pass

def test_short(): pass

@pytest.mark.full
def test_full(): pass
"""


def passed(folder: Path, *options: str) -> set[str]:
    """The names of the tests that ran."""
    command = [sys.executable, "-m", "pytest", "-v", "-p", "iiitools.sampling", "-p", "no:cacheprovider"]
    command += [*options, str(folder)]
    environment = {"PYTHONPATH": str(ROOT / "tools"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("--seed=" in done.stdout) == ("--long-sample" in options)
    return {line.split("::")[1].split()[0] for line in done.stdout.splitlines() if "PASSED" in line}


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  long: many\n  full: minutes\n")
    (tmp_path / "test_many.py").write_text(SUITE.format(count=4 * ONE_IN))
    (tmp_path / "test_few.py").write_text(SUITE.format(count=2).replace("test_long", "test_rare"))
    return tmp_path


def test_everything_runs_without_the_option(suite: Path) -> None:
    assert len(passed(suite)) == 4 * ONE_IN + 2 + 2  # test_short and test_full have one name in both files


def test_a_share_of_each_file_runs_with_it(suite: Path) -> None:
    names = passed(suite, "--long-sample")
    assert "test_short" in names
    assert "test_full" not in names
    assert len([name for name in names if name.startswith("test_long")]) == 4
    assert len([name for name in names if name.startswith("test_rare")]) == 1


def test_the_seed_decides_which(suite: Path) -> None:
    first = passed(suite, "--long-sample", "--seed=1")
    assert passed(suite, "--long-sample", "--seed=1") == first
    assert any(passed(suite, "--long-sample", f"--seed={seed}") != first for seed in (2, 3))
