"""The workers of the guide are the examples, which images are made of, and run outside a sandbox as the guide says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from iiitools.ports import reserved_port
from iiitools.sdks import SDKS, Sdk, install
from iiitools.waiting import PATIENCE, wait_until
from iiitools.worktree import ROOT

GUIDE = ROOT / "docs" / "writing-workers.md"
III = Path(sys.executable).with_name("iii")
_BLOCK = re.compile(r"^```\w+\n(?:#|//) (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SESSION = re.compile(r"^\$ iii (.*)\n((?:[^$`].*\n)+)", re.MULTILINE)


def files() -> dict[str, str]:
    """The files of the guide by name."""
    return dict(_BLOCK.findall(GUIDE.read_text(encoding="utf-8")))


def newest(language: str) -> Sdk:
    return max((sdk for sdk in SDKS if sdk.language == language), key=lambda sdk: sdk.generation)


@pytest.mark.parametrize("name", [name for name in files() if name.startswith("examples/")])
def test_the_examples_are_what_the_guide_shows(name: str) -> None:
    assert files()[name] == (ROOT / name).read_text(encoding="utf-8")


def test_nothing_of_the_guide_is_left_untested() -> None:
    assert sorted(files()) == [
        "examples/math-worker/Dockerfile",
        "examples/math-worker/iii.worker.yaml",
        "examples/math-worker/worker.py",
        "greeter.mjs",
    ]


@pytest.fixture
def port() -> Iterator[int]:
    with reserved_port() as reserved:
        yield reserved


@pytest.fixture
def environ(tmp_path: Path, port: int) -> dict[str, str]:
    (tmp_path / "run").mkdir(mode=0o700)
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "III_HOME": str(tmp_path / "home"),
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "III_URL": f"ws://127.0.0.1:{port}",
        "OTEL_ENABLED": "false",
        "NO_COLOR": "1",
    }


@pytest.fixture
def project(tmp_path: Path, port: int, environ: dict[str, str]) -> Iterator[Path]:
    """A project whose engine runs."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "config.yaml").write_text(f"workers:\n- name: iii-worker-manager\n  config: {{port: {port}}}\n")
    log = tmp_path / "engine.log"
    with log.open("wb") as said:
        engine = subprocess.Popen([III], cwd=folder, env=environ, stdin=subprocess.DEVNULL, stderr=said)
    with ended(engine):
        wait_until(lambda: "engine ready" in log.read_text(), told=log.read_text)
        yield folder


@pytest.fixture
def workers(tmp_path: Path, project: Path, environ: dict[str, str]) -> Iterator[None]:
    """The guide's two workers, as plain programs, connected."""
    python, node = newest("python"), newest("node")
    install([python, node])
    folder = tmp_path / "workers"
    folder.mkdir()
    (folder / "worker.py").write_text(files()["examples/math-worker/worker.py"])
    (folder / "greeter.mjs").write_text(files()["greeter.mjs"])
    (folder / "node_modules").symlink_to(node.folder / "node_modules")
    programs = [[python.interpreter, "worker.py"], [node.interpreter, "greeter.mjs"]]
    with ExitStack() as running:
        for program in programs:
            running.enter_context(ended(subprocess.Popen(program, cwd=folder, env=environ | node.environment)))
        wait_until(lambda: {"math::add", "greeter::hello"} <= functions(project, environ))
        yield


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """A program that is told to end with the block."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()


def iii(project: Path, environ: dict[str, str], *arguments: str) -> Any:
    return subprocess.run(
        [III, *arguments], cwd=project, env=environ, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def functions(project: Path, environ: dict[str, str]) -> set[str]:
    """Those that can be called."""
    answer = json.loads(iii(project, environ, "trigger", "engine::functions::list").stdout)
    return {row["function_id"] for row in answer["functions"]}


def listed(project: Path, environ: dict[str, str]) -> str:
    return str(iii(project, environ, "worker", "list").stderr)


@pytest.mark.integration
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("workers")
def test_workers_outside_a_sandbox_answer_as_the_guide_shows(project: Path, environ: dict[str, str]) -> None:
    sessions = _SESSION.findall(GUIDE.read_text(encoding="utf-8"))
    assert [command.split()[:2] for command, _ in sessions] == [["trigger", "math::add"], ["trigger", "greeter::hello"]]
    for command, shown in sessions:
        done = iii(project, environ, *command.split())
        assert (done.returncode, done.stdout, done.stderr) == (0, shown, "")
    for name in ("math-worker", "greeter"):
        assert re.search(rf"^  {name} +external ", listed(project, environ), re.MULTILINE)
