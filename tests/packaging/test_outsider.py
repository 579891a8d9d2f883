"""A sandbox backend of somebody else: its own project and wheel, installed with ours away from the work tree, where it
passes the conformance kit and runs a worker.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from iii_core.testing.sandbox_trial import select
from iiitools.ports import reserved_port
from iiitools.processes import still_running
from iiitools.waiting import PATIENCE, wait_until
from iiitools.workerimages import build_math_worker
from iiitools.worktree import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]  # the first test builds and installs everything
UV = ROOT / "tools" / "uv"
EXAMPLE = ROOT / "examples" / "iii-sandbox-mine"
NAME = "mine"
INSTALLED = ("iii-core", "iii-plugin-websocket", "iii-registry-oci", "iii-sandbox-guest")


@dataclass(frozen=True)
class Elsewhere:
    """A folder outside the work tree with an environment, a project and homes of its own."""

    folder: Path

    @property
    def environ(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder / "home"),
            "III_HOME": str(self.folder / "home"),
            "XDG_RUNTIME_DIR": str(self.folder / "run"),
            "LANG": "C.UTF-8",
            "NO_COLOR": "1",
        }

    @property
    def iii(self) -> Path:
        return self.folder / "venv" / "bin" / "iii"

    @property
    def project(self) -> Path:
        return self.folder / "project"

    def run(self, *arguments: str, **environ: str) -> str:
        """What ``iii …`` prints on stdout, whatever its exit code."""
        done = subprocess.run(
            [self.iii, *arguments],
            cwd=self.project,
            env={**self.environ, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.stdout, (arguments, done, self.log())
        return done.stdout

    def json(self, *arguments: str, **environ: str) -> dict[str, Any]:
        """What ``iii … --json`` prints, parsed."""
        answer: dict[str, Any] = json.loads(self.run(*arguments, "--json", **environ))
        return answer

    def log(self) -> str:
        path = self.folder / "engine.log"
        return path.read_text()[-4000:] if path.exists() else ""


def must(*command: str | Path, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=400)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def elsewhere(wheels: dict[str, Path]) -> Iterator[Elsewhere]:
    with tempfile.TemporaryDirectory(prefix="iii-outsider-") as name:  # a short path: sockets are in there
        folder = Path(name)
        assert ROOT not in folder.parents
        for private in ("home", "run", "project"):
            (folder / private).mkdir(mode=0o700)
        shutil.copytree(EXAMPLE, folder / "source")
        must(UV, "build", "--quiet", "--wheel", "--out-dir", folder / "dist", folder / "source", cwd=folder)
        theirs = list((folder / "dist").glob("*.whl"))
        assert [path.name for path in theirs] == ["iii_sandbox_mine-1.0.0-py3-none-any.whl"]
        must(UV, "venv", "--quiet", "--python", "3.11", folder / "venv", cwd=folder)
        ours = [wheels[name] for name in INSTALLED]
        install = ("pip", "install", "--quiet", "--python", folder / "venv")
        must(UV, "--project", ROOT, *install, *ours, *theirs, cwd=folder)  # at the versions that the tests run with
        yield Elsewhere(folder)


def test_it_is_found(elsewhere: Elsewhere) -> None:
    rows = {row["name"]: row for row in elsewhere.json("plugins", "list")["plugins"]}
    assert set(rows) == {*(name.split("-", 2)[-1] for name in INSTALLED[1:]), NAME}
    facts = ("status", "distribution", "version", "error")
    assert [rows[NAME].get(fact) for fact in facts] == ["loaded", "iii-sandbox-mine", "1.0.0", None]


def test_nothing_of_the_work_tree_is_used(elsewhere: Elsewhere) -> None:
    program = "import iii_core, iii_sandbox_mine, sys; print(iii_core.__file__, iii_sandbox_mine.__file__, *sys.path)"
    python = elsewhere.folder / "venv" / "bin" / "python"
    done = subprocess.run(
        [python, "-c", program],
        cwd=elsewhere.project,
        env=elsewhere.environ,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(ROOT) not in done.stdout


def test_its_probe_tries_it(elsewhere: Elsewhere) -> None:
    (row,) = elsewhere.json("sandbox", "backends")["backends"]
    assert (row["name"], row["works"], row["chosen"]) == (NAME, True, True)
    (row,) = elsewhere.json("sandbox", "backends", PATH="/nowhere")["backends"]
    assert (row["works"], row["hint"]) == (False, "install bwrap")


def test_it_passes_the_conformance_kit(elsewhere: Elsewhere) -> None:
    found = elsewhere.json("sandbox", "check", NAME)
    assert {check["name"]: check["error"] for check in found["checks"] if not check["ok"]} == {}
    assert len(found["checks"]) == len(select(""))


def test_it_runs_a_worker_and_leaves_nothing_when_its_host_is_killed(elsewhere: Elsewhere) -> None:
    build_math_worker(elsewhere.folder / "image", tag="1.0")
    with reserved_port() as port:
        run_a_worker(elsewhere, port)


def run_a_worker(elsewhere: Elsewhere, port: int) -> None:
    (elsewhere.project / "config.yaml").write_text(
        f"workers:\n"
        f"  - name: iii-worker-manager\n    config: {{port: {port}}}\n"
        f"  - name: math-worker\n    image: oci:{elsewhere.folder}/image:1.0\n    sandbox: {{backend: {NAME}}}\n"
    )
    with (elsewhere.folder / "engine.log").open("wb") as log:
        engine = subprocess.Popen(
            [elsewhere.iii], cwd=elsewhere.project, env=elsewhere.environ, stdin=subprocess.DEVNULL, stderr=log
        )
    try:
        assert wait_running(elsewhere)["backend"] == NAME
        wait_until(lambda: '"math::add"' in elsewhere.run("trigger", "engine::functions::list"), told=elsewhere.log)
        assert json.loads(elsewhere.run("trigger", "math::add", "a=2", "b=3", "--port", str(port))) == {"sum": 5}
        (host,) = psutil.Process(engine.pid).children()
        assert "iii_core.sandbox.hostproc" in host.cmdline()
        sandbox = host.children(recursive=True)
        assert sandbox
        host.kill()
        assert not still_running(sandbox, within=20)
        wait_running(elsewhere, restarts=1)
    finally:
        engine.send_signal(signal.SIGTERM)
        assert engine.wait(PATIENCE) == 0, elsewhere.log()


def wait_running(elsewhere: Elsewhere, restarts: int = 0) -> dict[str, Any]:
    """What the worker's status says once it runs, after that many restarts."""
    facts: dict[str, Any] = {}

    def runs() -> bool:
        nonlocal facts
        facts = elsewhere.json("worker", "status", "math-worker")
        return facts["status"] == "running" and facts["restarts"] >= restarts

    wait_until(runs, within=120, told=lambda: (facts, elsewhere.log()))
    return facts
