"""``iii doctor`` with the real program: what is missing, why, and what puts it right."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import IIIProject

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]
NewProject = Callable[[Path, Path], IIIProject]


@pytest.fixture
def project(project: IIIProject) -> IIIProject:
    """Without virtual machines, whose trial takes long where there is a kernel to boot."""
    project.environ["III_DISABLE_PLUGINS"] = "libvirt,cloud-hypervisor"
    return project


def doctor(project: IIIProject) -> tuple[int, dict[str, dict[str, Any]]]:
    """Its exit code, and its rows by name."""
    done = project.run("doctor", "--json")
    assert done.stdout, done.stderr
    answer = json.loads(done.stdout)
    assert answer["ok"] is (done.returncode == 0)
    return done.returncode, {row["name"]: row for row in answer["checks"]}


def test_a_machine_that_is_fine(project: IIIProject) -> None:
    code, rows = doctor(project)
    assert code == 0, rows
    core = ["python", "plugins", "default-plugins", "home", "runtime-folder", "config", "engine", "sandbox"]
    assert list(rows)[: len(core)] == core, "the core's come first"
    assert {"bwrap", "namespaces", "squashfuse", "skopeo", "sqfstar", "guest-agent", "guest-kernel"} <= rows.keys()
    assert rows["skopeo"]["distribution"] == "iii-registry-oci"
    assert "version" in rows["skopeo"]["message"]
    assert rows["engine"]["status"] == "warning"
    assert rows["engine"]["hint"] == "start it with 'iii'"
    assert "works" in rows["sandbox"]["message"]
    assert not (project.folder / ".iii").exists(), "nothing is changed"


def test_a_running_engine_is_seen_and_not_disturbed(project: IIIProject) -> None:
    project.start()
    assert project.engine is not None
    code, rows = doctor(project)
    assert code == 0
    assert rows["engine"]["status"] == "ok"
    assert f"pid {project.engine.pid} " in rows["engine"]["message"]
    assert f"127.0.0.1:{project.port}" in rows["engine"]["message"]
    assert project.stop() == 0


def test_what_is_missing_is_named_with_the_command_that_fixes_it(project: IIIProject, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    project.environ["PATH"] = str(empty)
    code, rows = doctor(project)
    assert code == 1
    missing = {
        "skopeo": ("failed", "apt install skopeo"),
        "sqfstar": ("failed", "apt install squashfs-tools"),
        "bwrap": ("warning", "apt install bubblewrap"),
        "sandbox": ("failed", "apt install bubblewrap"),
    }
    assert {name: (rows[name]["status"], rows[name]["hint"]) for name in missing} == missing
    assert "bwrap is not installed" in rows["sandbox"]["message"]


@pytest.mark.parametrize(
    ("script", "status", "words"),
    [
        ("#!/bin/sh\necho skopeo version 1.4.0", "failed", "too old"),
        ("#!/bin/sh\necho nonsense", "warning", "does not tell its version"),
        ("#!/nowhere", "failed", "does not run: No such file or directory"),
    ],
)
def test_an_odd_program_is_a_row(project: IIIProject, tmp_path: Path, script: str, status: str, words: str) -> None:
    program = tmp_path / "bin" / "skopeo"
    program.parent.mkdir()
    program.write_text(f"{script}\n")
    program.chmod(0o755)
    project.environ["PATH"] = f"{program.parent}:{project.environ['PATH']}"
    row = doctor(project)[1]["skopeo"]
    assert row["status"] == status
    assert words in row["message"]


def test_a_faulty_project_is_a_row(project: IIIProject) -> None:
    project.config.write_text("wrokers: []\n")
    code, rows = doctor(project)
    assert code == 1
    assert rows["config"]["status"] == "failed"
    assert rows["config"]["message"].startswith("[W132] ")
    assert rows["config"]["hint"] == "did you mean 'workers'?"
    assert rows["sandbox"]["status"] == "ok", "settings that cannot be read are another row's matter"
    project.config.write_text("workers:\n  - name: a\n    image: x/y:1\n    config: {A: '${NOT_SET}'}\n")
    code, rows = doctor(project)
    assert code == 0
    assert rows["config"]["status"] == "warning"
    assert "NOT_SET" in rows["config"]["message"]
    project.config.unlink()
    assert doctor(project)[1]["config"]["status"] == "warning"


def test_a_home_that_cannot_be_used_is_a_row(project: IIIProject, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    project.environ["III_HOME"] = str(in_the_way / "home")
    code, rows = doctor(project)
    assert code == 1
    assert rows["home"]["status"] == "failed"
    assert rows["home"]["hint"] == "set III_HOME to a folder of yours"


def test_broken_plugins_are_rows(project: IIIProject, tmp_path: Path) -> None:
    info = tmp_path / "site" / "broken-1.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text("[iii]\nbroken = broken_plugin\n")
    module = info.parent / "broken_plugin.py"
    project.environ["PYTHONPATH"] = str(info.parent)
    module.write_text("raise RuntimeError('boom')\n")
    code, rows = doctor(project)
    assert code == 1
    assert "'broken' of broken 1.5: RuntimeError: boom" in rows["plugins"]["message"]
    assert rows["plugins"]["hint"].endswith("pip install --upgrade broken")
    module.write_text(
        "from iii_core import hookimpl\nfrom iii_core.records import Check\n"
        "async def run(context): raise KeyError('x')\n"
        "@hookimpl\ndef iii_checks(): yield Check(name='mine', run=run)\n"
    )
    code, rows = doctor(project)
    assert code == 1
    assert rows["mine"]["message"] == "the check itself is broken: KeyError at broken_plugin.py:3"
    assert rows["plugins"]["status"] == "ok"


def test_for_people(project: IIIProject) -> None:
    done = project.run("doctor")
    assert done.returncode == 0
    assert done.stdout == b""
    lines = done.stderr.decode().splitlines()
    assert lines[0].startswith("  ✓ python ")
    assert f"Python {sys.version_info.major}.{sys.version_info.minor}" in lines[0]
    warnings = sum(line.startswith("  ! ") for line in lines)
    assert lines[-1].endswith(f" checks: 0 failed, {warnings} with a warning.")
    hint = lines[next(number for number, line in enumerate(lines) if line.startswith("  ! engine ")) + 1]
    assert hint.strip() == "hint: start it with 'iii'"
