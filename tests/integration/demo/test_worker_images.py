"""The images that demos and tests use hold what their workers need, and nothing of this machine."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iiitools.workerimages import build_hello_worker, build_math_worker

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]  # the first build downloads packages


class Unpacked:
    """An image's files in a folder, with a way to run its programs in namespaces of their own."""

    def __init__(self, layout: Path, tag: str, root: Path) -> None:
        (descriptor,) = json.loads((layout / "index.json").read_text())["manifests"]
        assert descriptor["annotations"]["org.opencontainers.image.ref.name"] == tag
        manifest = self._blob(layout, descriptor)
        self.config = self._blob(layout, manifest["config"])["config"]
        self.root = root
        root.mkdir()
        for layer in manifest["layers"]:
            archive = layout / "blobs" / "sha256" / layer["digest"].removeprefix("sha256:")
            subprocess.run(["tar", "--extract", "--file", archive, "--directory", root], check=True, timeout=60)

    @staticmethod
    def _blob(layout: Path, descriptor: dict[str, str]) -> dict[str, Any]:
        blob: dict[str, Any] = json.loads(
            (layout / "blobs" / "sha256" / descriptor["digest"].removeprefix("sha256:")).read_text()
        )
        return blob

    def run(self, *command: str) -> str:
        """Run a program as the image's config says; returns its stdout."""
        sandbox = ["bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", str(self.root), "/", "--proc", "/proc"]
        sandbox += ["--dev", "/dev", "--tmpfs", "/tmp", "--chdir", str(self.config["WorkingDir"]), "--clearenv"]
        for variable in [*self.config["Env"], "HOME=/tmp"]:
            sandbox += ["--setenv", *variable.split("=", 1)]
        done = subprocess.run([*sandbox, *command], capture_output=True, text=True, timeout=50)
        assert done.returncode == 0, done.stderr
        return done.stdout


def unpacked(build: Callable[..., str], folder: Path) -> Unpacked:
    digest = build(folder / "layout", tag="image")
    assert digest.startswith("sha256:")
    return Unpacked(folder / "layout", "image", folder / "root")


@pytest.fixture(scope="module")
def math_worker(tmp_path_factory: pytest.TempPathFactory) -> Unpacked:
    return unpacked(build_math_worker, tmp_path_factory.mktemp("math"))


@pytest.fixture(scope="module")
def hello_worker(tmp_path_factory: pytest.TempPathFactory) -> Unpacked:
    return unpacked(build_hello_worker, tmp_path_factory.mktemp("hello"))


def test_python_finds_the_sdk_in_the_image(math_worker: Unpacked) -> None:
    found = math_worker.run("python3", "-c", "import iii, ssl, sqlite3, ctypes, lzma, bz2; print(iii.__file__)")
    assert found.strip() == "/usr/local/lib/python3.11/dist-packages/iii/__init__.py"


def test_python_need_not_compile_what_the_image_holds(math_worker: Unpacked) -> None:
    cached = "import importlib.util as u, pathlib, iii; print(pathlib.Path(u.cache_from_source(iii.__file__)).exists())"
    assert math_worker.run("python3", "-c", cached).strip() == "True"


def test_worker_function_adds(math_worker: Unpacked) -> None:
    assert "{'sum': 5}" in math_worker.run("python3", "-c", "import worker; print(worker.add({'a': 2, 'b': 3}))")


def test_busybox_is_there(math_worker: Unpacked) -> None:
    assert math_worker.run("uname", "-a").startswith("Linux ")
    assert math_worker.run("sh", "-c", "ls / | grep -c workspace").strip() == "1"


def test_image_says_what_it_is(math_worker: Unpacked) -> None:
    assert math_worker.config["Entrypoint"] == ["python3", "worker.py"]
    assert (math_worker.root / "iii" / "worker.yaml").read_text().startswith("name: math-worker\n")


def test_same_inputs_same_image(tmp_path: Path) -> None:
    assert build_math_worker(tmp_path / "a", tag="x") == build_math_worker(tmp_path / "b", tag="y")


def test_node_runs_typescript_as_the_dockerfile_says(hello_worker: Unpacked) -> None:
    assert hello_worker.config["Entrypoint"] == ["npx", "tsx", "src/index.ts"]
    program = "import { registerWorker } from 'iii-sdk'; const kind: string = typeof registerWorker; console.log(kind)"
    assert hello_worker.run("npx", "tsx", "--eval", program).strip() == "function"
