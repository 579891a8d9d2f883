"""Mistakes and missing things: a stable code, a hint, an exit code; and files, images and workers stay as they were."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from iiitools.ocilayout import PlatformImage, tar_layer, write_index, write_layout
from iiitools.registry import Registry, run_registry

if TYPE_CHECKING:
    from conftest import IIIProject

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]
NAME = "math-worker"
PINNED = "  iii-http:\n    version: 0.16.0\n    type: engine\n    dependencies: {}\n"


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "locks" not in path.parts  # empty files to flock
    }


def state_of(project: IIIProject) -> Any:
    """What no mistake may change: configuration, pins, images, and the workers that run."""
    alive = project.engine is not None and project.engine.poll() is None
    facts = project.status() if alive and NAME in project.config.read_text() else {}
    return (
        project.config.read_bytes(),
        (project.folder / "iii.lock").read_bytes(),
        tree(project.home),
        {key: facts.get(key) for key in ("status", "pid", "restarts")},
    )


@contextmanager
def unchanged(project: IIIProject) -> Iterator[None]:
    before = state_of(project)
    yield
    assert state_of(project) == before


def refused(project: IIIProject, *arguments: str, code: str, exit_code: int = 1, hint: str = "") -> str:
    """Run ``iii``, which must fail in this way; what it said."""
    done = project.run(*arguments)
    said = done.stderr.decode()
    assert done.returncode == exit_code, (arguments, said)
    assert done.stdout == b""
    assert f"error: [{code}] " in said, said
    assert "\nhint: " in said, said
    assert hint in said.partition("\nhint: ")[2], said
    assert "Traceback" not in said
    return said


def pin_one_more(project: IIIProject) -> None:
    """Make sure that there is a lockfile, and that it pins more than the project's worker."""
    path = project.folder / "iii.lock"
    text = path.read_text() if path.exists() else "version: 1\nworkers:\n"
    if PINNED not in text:
        path.write_text(text + PINNED)


@pytest.fixture(params=["engine", "no engine"])
def either(request: pytest.FixtureRequest) -> IIIProject:
    """A project whose engine runs ``math-worker``, and one that has no engine."""
    chosen: IIIProject = request.getfixturevalue("running" if request.param == "engine" else "project")
    pin_one_more(chosen)
    return chosen


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "iii-tests", folder], check=True, timeout=10)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True, timeout=10)


@pytest.fixture(scope="module")
def sources(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """Things that cannot be added, by what is wrong with them."""
    folder = tmp_path_factory.mktemp("bad")
    with run_registry(folder / "open") as own, run_registry(folder / "closed", credentials=("u", "p")) as closed:
        layout = folder / "layout"
        layer = tar_layer({"noise": os.urandom(5000)})
        write_layout(layout, tag="t", layers=[layer], config={"Cmd": ["x"]})
        yield {
            "unreachable": "localhost:1/x/y:1",
            "unknown name": f"{registry.address}/no-such-worker:1",
            "unknown tag": f"{registry.address}/{NAME}:9.9",
            "unknown digest": f"{registry.address}/{NAME}@sha256:{0:064}",
            "wrong bytes": tampered(own, layout, folder / "open"),
            "wrong platform": foreign(own, layout),
            "no credentials": closed.push(layout, "t", "secret:1"),
            "no reference": f"{registry.address}/Bad Name:1",
            "no such scheme": "nonsense",
        }


def tampered(registry: Registry, layout: Path, storage: Path) -> str:
    """An image whose layer the registry has changed."""
    reference = registry.push(layout, "t", "tampered:1")
    blob = max(storage.glob("**/blobs/sha256/*/*/data"), key=lambda path: path.stat().st_size)
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)
    return reference


def foreign(registry: Registry, layout: Path) -> str:
    """An image for two machines that are not this one."""
    layers = [tar_layer({"file": b"x"})]
    images = [PlatformImage(architecture=name, layers=layers) for name in ("s390x", "ppc64le")]
    write_index(layout, tag="foreign", images=images)
    return registry.push(layout, "foreign", "foreign:1")


@pytest.mark.parametrize(
    ("wrong", "code", "exit_code", "hint"),
    [
        ("unreachable", "W221", 1, "check the address"),
        ("unknown name", "W220", 1, "check name and tag"),
        ("unknown tag", "W220", 1, "check name and tag"),
        ("unknown digest", "W220", 1, "check name and tag"),
        ("wrong bytes", "W224", 1, "ask who runs the registry"),
        ("wrong platform", "W223", 1, ""),
        ("no credentials", "W222", 1, "REGISTRY_AUTH_FILE"),
        ("no reference", "W105", 1, ""),
        ("no such scheme", "W212", 1, "installed registries"),
    ],
)
def test_sources_that_cannot_be_added(
    either: IIIProject, sources: Mapping[str, str], wrong: str, code: str, exit_code: int, hint: str
) -> None:
    with unchanged(either):
        said = refused(either, "worker", "add", sources[wrong], code=code, exit_code=exit_code, hint=hint)
        if wrong == "wrong platform":
            assert "s390x" in said
            assert "ppc64le" in said


@pytest.mark.parametrize("with_engine", [True, False])
def test_a_disk_that_is_full(
    tmp_path: Path, small_disk: Path, registry: Registry, new_project: Any, with_engine: bool
) -> None:
    project: IIIProject = new_project(tmp_path, small_disk)
    pin_one_more(project)
    if with_engine:
        project.start()
    free = os.statvfs(small_disk).f_bfree
    with unchanged(project):
        refused(project, "worker", "add", f"{registry.address}/{NAME}:1.0", code="W226", hint="free some disk space")
    assert free - os.statvfs(small_disk).f_bfree < 16, "pages of 4 KiB, for folders and locks"


@pytest.mark.parametrize("command", ["start", "stop", "restart", "status", "logs", "remove", "exec"])
def test_unknown_workers(either: IIIProject, command: str) -> None:
    rest = ["--", "true"] if command == "exec" else []
    with unchanged(either):
        said = refused(either, "worker", command, "nobody", *rest, code="W112", hint="'iii worker add'")
    assert "error: [W112] worker 'nobody' is not in config.yaml\n" in said
    assert "ing nobody" not in said, "nothing was begun"


@pytest.mark.parametrize(
    ("command", "name"),
    [("start", "../x"), ("stop", ".x"), ("restart", "a b"), ("status", ""), ("logs", "../../x"), ("remove", "/x")],
)
def test_names_are_refused_before_anything_is_touched(project: IIIProject, command: str, name: str) -> None:
    refused(project, "worker", command, name, code="W100")
    assert not (project.folder / ".iii").exists()


def test_a_second_engine_on_the_same_project_or_port(running: IIIProject, project: IIIProject) -> None:
    pin_one_more(running)
    with unchanged(running):
        assert running.engine is not None
        for config in ([], ["-c", "another.yaml"]):
            assert f"(pid {running.engine.pid})" in refused(running, *config, code="W202", hint="stop it first")
        assert not (running.folder / "another.yaml").exists()
        project.config.write_text(running.config.read_text().split(f"  - name: {NAME}")[0])
        assert str(running.port) in refused(project, code="W203")
        running.assert_callable()


WRONG_FILES = [
    ("workers: [", "W131", 2, "brackets"),
    ("workers: []\nworkers: []\n", "W131", 2, "remove one of them"),
    ("workers:\n- {name: a, image: r/a, name: b}\n", "W131", 2, "remove one of them"),
    ("wrokers: []\n", "W132", 1, "did you mean 'workers'?"),
    ("workers:\n- name: a\n  imgae: r/a\n", "W132", 3, "did you mean 'image'?"),
    ("workers: 5\n", "W131", 1, "line 1"),
    ("workers:\n- {name: a, image: [r/a]}\n", "W131", 2, "line 2"),
    ("workers:\n- {name: '../x', image: r/a}\n", "W131", 2, "letters"),
]
WRONG_ENGINE_FILES = [
    *WRONG_FILES,
    ("workers:\n- {name: iii-worker-manager, config: {prot: 1}}\n", "W132", 2, "did you mean 'port'?"),
    ("workers:\n- {name: iii-worker-manager, config: {port: many}}\n", "W131", 2, "correct"),
    ("workers:\n- {name: iii-worker-manager, config: {port: '${III_NOT_SET}'}}\n", "W133", 2, "III_NOT_SET"),
]


@pytest.mark.parametrize(("text", "code", "line", "hint"), WRONG_ENGINE_FILES)
def test_an_engine_does_not_start_with_a_wrong_file(
    project: IIIProject, text: str, code: str, line: int, hint: str
) -> None:
    project.config.write_text(text)
    said = refused(project, code=code, hint=hint)
    assert f"config.yaml:{line}: " in said or f"(line {line})" in said
    assert project.config.read_text() == text


@pytest.mark.parametrize(("text", "code", "line", "hint"), WRONG_FILES)
def test_a_wrong_file_is_not_edited_and_nothing_is_fetched_for_it(
    project: IIIProject, small_image: str, text: str, code: str, line: int, hint: str
) -> None:
    project.config.write_text(text)
    images = tree(project.home)
    for command in (("add", small_image), ("remove", "-y", "a"), ("list",)):
        assert f"config.yaml:{line}: " in refused(project, "worker", *command, code=code, hint=hint)
    assert project.config.read_text() == text
    assert tree(project.home) == images


def test_a_wrong_file_leaves_an_engine_with_what_was_in_force(running: IIIProject, small_image: str) -> None:
    pin_one_more(running)
    good = running.config.read_text()
    with unchanged(running):
        running.config.write_text(wrong := good + "wrokers: []\n")
        for command in (("add", small_image), ("remove", "-y", NAME)):
            refused(running, "worker", *command, code="W132", hint="did you mean 'workers'?")
        assert running.config.read_text() == wrong
        assert running.row()["status"] == "running"
        running.assert_callable()
        running.config.write_text(good)


def test_an_almost_right_name_is_no_source(project: IIIProject) -> None:
    project.config.write_text("workers:\n- {name: resize, image: r/resize}\n")
    refused(project, "worker", "reinstall", "resise", code="W212", hint="did you mean 'resize'?")


@pytest.fixture(scope="module")
def small_image(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A good image that nobody has fetched."""
    layout = tmp_path_factory.mktemp("small") / "layout"
    write_layout(layout, tag="t", layers=[tar_layer({"noise": os.urandom(100)})], config={"Cmd": ["x"]})
    return registry.push(layout, "t", "small:1")


def test_a_worker_that_cannot_start_is_failed_with_the_reason(project: IIIProject, registry: Registry) -> None:
    text = (
        project.config.read_text()
        + f"  - name: w\n    image: {registry.address}/{NAME}:1.0\n    config: {{K: '${{III_NOT_SET}}'}}\n"
        + f"  - name: {NAME}\n    image: {registry.address}/{NAME}:1.0\n"
    )
    project.config.write_text(text)
    project.start()
    facts = project.wait_for(lambda facts: facts["status"] == "failed", "w")
    reason = "worker 'w' needs the environment variable III_NOT_SET, which is not set"
    assert facts["error"]["code"] == "W133"
    assert facts["error"]["message"] == reason
    assert (facts["restarts"], facts["pid"]) == (0, None)
    said = refused(project, "worker", "start", "w", code="W133", hint="III_NOT_SET")
    assert f"error: [W133] {reason}" in said
    shown = project.run("worker", "status", "w")
    assert shown.returncode == 1
    assert "✗ w failed" in shown.stderr.decode()
    assert f"error:  [W133] {reason}" in shown.stderr.decode()
    assert f"[iii] [W133] {reason}" in project.run("worker", "logs", "w").stderr.decode()
    assert project.row("w")["note"] == reason
    project.wait_running()
    project.wait_callable()
    project.assert_callable()
    assert project.config.read_text() == text
