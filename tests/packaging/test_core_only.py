"""The core works without any plugin: its wheel, in an environment with its dependencies alone."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from iiitools.worktree import ROOT, source_files

pytestmark = pytest.mark.timeout(300)  # the first test installs an environment
UV = str(ROOT / "tools" / "uv")


def run(*command: str | Path) -> str:
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel of the core and what it depends on."""
    folder = tmp_path_factory.mktemp("core-only")
    run(UV, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    run(UV, "venv", "--quiet", "--python", "3.11", folder / "venv")
    run(UV, "--project", ROOT, "pip", "install", "--quiet", "--python", folder / "venv", wheel)
    return folder / "venv"


def test_every_module_of_the_core_can_be_imported(environment: Path) -> None:
    paths = [path.relative_to(ROOT).with_suffix("") for path in source_files(".py", below=ROOT / "iii_core")]
    modules = [".".join(path.parts).removesuffix(".__init__") for path in paths]
    # the conformance kits are made to be run by pytest, which the core does not depend on
    modules = [name for name in modules if not name.startswith("iii_core.testing")]
    program = f"import importlib\nfor name in {modules!r}: importlib.import_module(name)"
    run(environment / "bin" / "python", "-I", "-c", program)


def test_help_and_an_empty_list_of_plugins(environment: Path) -> None:
    assert "worker" in run(environment / "bin" / "iii", "--help")
    assert json.loads(run(environment / "bin" / "iii", "plugins", "list", "--json")) == {"plugins": []}
