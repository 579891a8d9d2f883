"""`make bench` measures each benchmark in a process of its own, and reports ratios."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from iiitools.worktree import ROOT

BENCHMARK = """
from iiitools.bench import Row, median_times, pinned

def measure():
    print("chatter")
    with pinned(0) as where:
        ours, reference = median_times(lambda: sum(range(200_000)), lambda: None, rounds=3)
    row = dict(name="sum", unit="s", ours=ours, reference=reference, reference_name="nothing at all", conditions=where)
    return [Row(**row, aim=1.0, better="lower"), Row(**row, aim=1.0, better="higher")]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(ROOT / "benchmarks" / "run.py", tmp_path / "benchmarks")
    return tmp_path


def run(folder: Path, *names: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(ROOT / "tools"), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    command = [sys.executable, str(folder / "benchmarks" / "run.py"), *names]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50)


def test_rows_are_printed_and_written(folder: Path) -> None:
    (folder / "benchmarks" / "sums.py").write_text(BENCHMARK)
    done = run(folder)
    assert done.returncode == 0, done.stderr
    assert "pinned to CPU 0" in done.stdout
    assert "chatter" not in done.stdout
    lower, higher = json.loads((folder / "build" / "bench.json").read_text())["rows"]
    assert lower["ratio"] == pytest.approx(lower["ours"] / lower["reference"])
    assert (lower["met"], higher["met"]) == (False, True)


def test_a_benchmark_that_fails_does_not_stop_the_others(folder: Path) -> None:
    (folder / "benchmarks" / "aaa.py").write_text("raise SystemExit('broken')")
    (folder / "benchmarks" / "sums.py").write_text(BENCHMARK)
    done = run(folder)
    assert done.returncode == 1
    assert "failed: aaa" in done.stderr
    assert "nothing at all" in done.stdout


def test_an_unknown_name_is_refused(folder: Path) -> None:
    assert run(folder, "nothing").returncode == 2
