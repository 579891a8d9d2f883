"""The agent's own unit tests and fuzzers, and what the build makes."""

from __future__ import annotations

import platform
import random
import subprocess
import zipfile
from pathlib import Path

import pytest
from iii_sandbox_guest import agent_path

from iii_core.errors import BackendUnavailable

from .conftest import SOURCE

pytestmark = pytest.mark.timeout(300)  # they compile, with sanitizers too
ROOT = SOURCE.parents[2]


def make(build: Path, target: str, *arguments: str) -> str:
    argv = ["make", "-s", "-C", str(SOURCE), f"BUILD={build}", *arguments, target]
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_units_and_a_short_fuzzing(build_dir: Path) -> None:
    assert make(build_dir, "check", "ROUNDS=1500", "SEED=1") == "ok\n1500 rounds\n"


@pytest.mark.long
@pytest.mark.parametrize("seed", [random.Random(n).randrange(1 << 30) for n in range(3)])
def test_a_longer_fuzzing(build_dir: Path, seed: int) -> None:
    assert make(build_dir, "check", "ROUNDS=12000", f"SEED={seed}") == "ok\n12000 rounds\n"


def test_the_program_is_static_and_needs_nothing() -> None:
    headers = subprocess.run(["readelf", "-ldW", agent_path()], capture_output=True, text=True, check=True).stdout
    assert "INTERP" not in headers
    assert "NEEDED" not in headers
    assert agent_path().stat().st_size < 2 << 20


def test_the_program_that_is_installed_is_that_of_the_source(tmp_path: Path) -> None:
    """A work tree whose agent was not rebuilt tests yesterday's."""
    make(tmp_path, "all", f"OUT={tmp_path / 'agent'}")
    assert (tmp_path / "agent").read_bytes() == agent_path().read_bytes(), "run `uv sync --all-packages`"


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("iii_sandbox_guest.agent_program.__file__", str(tmp_path / "agent_program.py"))
    with pytest.raises(BackendUnavailable, match=f"missing at {tmp_path}"):
        agent_path()


def test_a_missing_compiler_is_named(tmp_path: Path) -> None:
    argv = ["make", "-s", "-C", str(SOURCE), f"BUILD={tmp_path}", "CC=no-such-compiler", f"OUT={tmp_path / 'agent'}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "no-such-compiler" in done.stderr


def test_the_wheel_is_for_the_platform_and_carries_the_program(tmp_path: Path) -> None:
    argv = [ROOT / "tools" / "uv", "build", "--quiet", "--wheel", "--out-dir", tmp_path, SOURCE.parent]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    (wheel,) = tmp_path.glob("*.whl")
    machine = platform.machine()
    assert wheel.name.endswith(f"-py3-none-manylinux_2_17_{machine}.musllinux_1_1_{machine}.whl")
    with zipfile.ZipFile(wheel) as archive:
        member = archive.getinfo("iii_sandbox_guest/bin/agent")
        assert archive.read(member) == agent_path().read_bytes()
        assert member.external_attr >> 16 & 0o111 == 0o111, "it is executable"
