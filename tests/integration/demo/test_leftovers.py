"""The demo's last check finds what was left behind, and removes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from iii_core.sandbox.host_processes import ProcessId
from iiitools.worktree import ROOT

pytestmark = pytest.mark.integration

PROGRAM = """
import subprocess, sys
from pathlib import Path
from iii_core.sandbox import linux
from iiitools import leftovers

leftovers.SETTLE_SECONDS = float(sys.argv[3])
linux.adopt_orphans()
subprocess.run(["sh", "-c", sys.argv[1]], check=True)
print("\\n".join(leftovers.remove(Path(sys.argv[2]))))
"""


def what_is_left_by(script: str, folder: Path, *wrapper: str, settle: float = 0.5) -> list[str]:
    """The findings after a shell script, in a process of its own (it adopts orphans)."""
    command = [*wrapper, sys.executable, "-c", PROGRAM, script, str(folder), str(settle)]
    environment = {"PYTHONPATH": str(ROOT / "tools"), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1] if done.stdout.strip() else []


def test_nothing_is_found_where_nothing_is_left(tmp_path: Path) -> None:
    assert what_is_left_by("sleep 0.1 &", tmp_path, settle=30) == []


def test_a_daemon_is_found_and_killed(tmp_path: Path) -> None:
    (found,) = what_is_left_by("setsid sh -c 'sleep 61 >/dev/null 2>&1 & '", tmp_path)
    name = found.removeprefix("left running: ")
    assert name.endswith("sleep 61")
    assert ProcessId.of(int(name.split()[0])) is None


def test_a_mount_is_found_and_removed(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    found = what_is_left_by(f"mount -t tmpfs none {mount}", tmp_path, "unshare", "--user", "--map-root-user", "--mount")
    assert found == [f"left mounted: {mount}"]
