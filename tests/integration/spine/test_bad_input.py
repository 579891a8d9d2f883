"""Mistakes and missing things: a stable code, a hint, and nothing changed."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import IIIProject
    from iiitools.registry import Registry

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "locks" not in path.parts  # empty files to flock
    }


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("{registry}/no-such-worker:1", "W220"),
        ("{registry}/math-worker:9.9", "W220"),
        ("{registry}/math-worker@sha256:" + "0" * 64, "W220"),
        ("localhost:1/x/y:1", "W221"),
        ("{registry}/Bad Name:1", "W"),
        ("./folder", "W212"),
    ],
)
def test_sources_that_cannot_be_added(
    project: IIIProject, registry: Registry, home: Path, source: str, code: str
) -> None:
    before = project.config.read_bytes(), tree(home)
    done = project.run("worker", "add", source.format(registry=registry.address))
    assert done.returncode == 1 or (code == "W" and done.returncode == 2), done
    assert f"[{code}".encode() in done.stderr, done.stderr
    assert b"hint" in done.stderr
    assert done.stdout == b""
    assert (project.config.read_bytes(), tree(home)) == before


@pytest.mark.parametrize("name", ["../x", ".x", "a b", ""])
@pytest.mark.parametrize("command", ["start", "stop", "restart", "status", "logs", "remove"])
def test_names_are_refused_before_anything_is_touched(project: IIIProject, command: str, name: str) -> None:
    done = project.run("worker", command, name)
    assert done.returncode in (1, 2)
    assert b"W100" in done.stderr
    assert not (project.folder / ".iii").exists()


@pytest.mark.parametrize("command", [["start", "x"], ["restart", "x"], ["exec", "x", "--", "true"]])
def test_without_an_engine(project: IIIProject, command: list[str]) -> None:
    done = project.run("worker", *command)
    assert done.returncode == 1
    assert b"W201" in done.stderr
    assert b"hint" in done.stderr


def test_unknown_workers(running: IIIProject) -> None:
    for command in ("start", "restart", "status"):
        done = running.run("worker", command, "nobody")
        assert done.returncode == 1
        assert b"W112" in done.stderr or b"not in config.yaml" in done.stderr


def test_a_second_engine_on_the_same_project_or_port(running: IIIProject, project: IIIProject) -> None:
    same = running.run()
    assert same.returncode == 1
    assert b"W202" in same.stderr
    project.config.write_text(running.config.read_text().split("  - name: math-worker")[0])
    other = project.run()
    assert other.returncode == 1
    assert b"W203" in other.stderr
    running.ok("trigger", "math::add", "a=1", "b=1")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("workers: [", "W131"),
        ("workers: []\nworkers: []\n", "W131"),
        ("wrokers: []\n", "W132"),
        ("workers: 5\n", "W131"),
        ("workers:\n- {name: iii-worker-manager, config: {prot: 1}}\n", "W132"),
        ("workers:\n- {name: iii-worker-manager, config: {port: many}}\n", "W131"),
        ("workers:\n- {name: iii-worker-manager, config: {port: '${III_NOT_SET}'}}\n", "W133"),
        ("workers:\n- {name: '../x', image: a/b}\n", "W131"),
    ],
)
def test_a_configuration_that_is_wrong_says_where(project: IIIProject, text: str, code: str) -> None:
    project.config.write_text(text)
    done = project.run()
    assert done.returncode == 1
    assert code.encode() in done.stderr, done.stderr
    assert b"config.yaml:" in done.stderr or b"line" in done.stderr
    assert project.config.read_text() == text


def test_a_worker_that_cannot_start_is_failed_with_the_reason(project: IIIProject, registry: Registry) -> None:
    project.start()
    project.config.write_text(
        project.config.read_text()
        + f"  - name: w\n    image: {registry.address}/math-worker:1.0\n    config: {{K: '${{III_NOT_SET}}'}}\n"
    )
    done = project.run("worker", "start", "w")
    assert done.returncode == 1
    assert b"III_NOT_SET" in done.stderr or b"not in config" in done.stderr
