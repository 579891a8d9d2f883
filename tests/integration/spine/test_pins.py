"""iii.lock: a project goes on running what was added to it, wherever its tag moves and whatever the store has lost."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from iii_core.workers.snapshots import SnapshotStore
from iiitools.debianimage import base, build_layer
from iiitools.ocilayout import tar_layer, write_layout
from iiitools.workerimages import architecture

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import IIIProject
    from iiitools.registry import Registry

    Push = Callable[[str, str], tuple[str, str]]

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]
NAME = "versioned"


@pytest.fixture
def push(registry: Registry, tmp_path: Path) -> Push:
    """Push an image that says which one it is and stays; gives its reference and its digest."""
    repository = f"v{os.urandom(4).hex()}/{NAME}"

    def push(version: str, tag: str = "1") -> tuple[str, str]:
        layout = tmp_path / f"layout-{version}"
        script = f"echo this is {version}; trap 'exit 0' TERM; sleep 100 & wait".encode()
        busybox = build_layer("busybox", ("busybox-static",), base)
        digest = write_layout(
            layout,
            tag="t",
            layers=[busybox, tar_layer({"script": script, "version": version.encode()})],
            config={"Entrypoint": ["/bin/sh", "/script"]},
            architecture=architecture(),
        )
        return registry.push(layout, "t", f"{repository}:{tag}"), digest

    return push


@pytest.fixture
def fresh(new_project: Callable[[Path, Path], IIIProject], tmp_path: Path) -> IIIProject:
    """A project with an image store of its own, which a test may lose."""
    (tmp_path / "project").mkdir()
    return new_project(tmp_path / "project", tmp_path / "home")


def lose_store(project: IIIProject) -> None:
    project.home.rename(project.home.with_name(f"lost-{os.urandom(4).hex()}"))


def assert_runs(project: IIIProject, version: str) -> None:
    """The worker comes to run, and is that version's image."""

    def runs(facts: dict[str, Any]) -> bool:
        return facts["status"] == "starting" and f"this is {version}" in facts["stdout_tail"]

    project.wait_for(runs, NAME)
    assert project.ok("worker", "exec", NAME, "--", "cat", "/version") == version


def test_a_moved_tag_and_a_lost_store_change_nothing(fresh: IIIProject, push: Push) -> None:
    reference, old = push("old", "1")
    said = fresh.run("worker", "add", reference).stderr.decode()
    assert f"  Digest: {old}\n" in said
    assert "✓ Wrote iii.lock\n" in said
    lock = (fresh.folder / "iii.lock").read_text()
    assert f"image: {reference}@{old}\n" in lock
    assert f"image: {reference}\n" in fresh.config.read_text()

    _, new = push("new", "1")
    lose_store(fresh)
    fresh.start()
    assert_runs(fresh, "old")
    assert fresh.status(NAME)["pin"] == f"{reference}@{old}"
    assert f"pinned:  {old}\n" in fresh.run("worker", "status", "--no-watch", NAME).stderr.decode()
    assert (fresh.folder / "iii.lock").read_text() == lock

    said = fresh.run("worker", "reinstall", "--no-wait", NAME).stderr.decode()
    assert "unchanged in config.yaml\n  ✓ Wrote iii.lock\n" in said
    assert_runs(fresh, "new")
    assert f"image: {reference}@{new}\n" in (fresh.folder / "iii.lock").read_text()

    assert "removed from config.yaml and iii.lock" in fresh.run("worker", "remove", "-y", NAME).stderr.decode()
    assert NAME not in (fresh.folder / "iii.lock").read_text()


def test_adding_another_tag_moves_the_pin_without_force(fresh: IIIProject, push: Push) -> None:
    first, _ = push("one", "1")
    second, digest = push("two", "2")
    fresh.ok("worker", "add", first)
    said = fresh.run("worker", "add", second).stderr.decode()
    assert f"It came from {first} before." in said
    assert f"image: {second}@{digest}\n" in (fresh.folder / "iii.lock").read_text()
    assert f"image: {second}\n" in fresh.config.read_text()


def test_a_lock_that_disagrees_is_said_and_nothing_runs(fresh: IIIProject, push: Push) -> None:
    first, digest = push("one", "1")
    second, _ = push("two", "2")
    fresh.ok("worker", "add", first)
    fresh.config.write_text(fresh.config.read_text().replace(first, second))
    fresh.start()
    facts = fresh.wait_for(lambda facts: facts["status"] == "failed", NAME)
    assert facts["error"]["code"] == "W150"
    assert facts["error"]["message"] == (
        f"worker '{NAME}' is {second} in config.yaml, and {first}@{digest} in iii.lock"
    )
    assert f"'iii worker reinstall {NAME}'" in facts["error"]["hint"]
    fresh.ok("worker", "reinstall", "--no-wait", NAME)
    assert_runs(fresh, "two")


def test_a_lock_that_changes_beside_the_engine_is_taken_up(fresh: IIIProject, push: Push) -> None:
    reference, old = push("old", "1")
    fresh.ok("worker", "add", reference)
    lock = (fresh.folder / "iii.lock").read_text()
    _, new = push("new", "1")
    fresh.start()
    assert_runs(fresh, "old")
    (fresh.folder / "iii.lock").write_text(lock.replace(old, new))  # as `git pull` does
    assert_runs(fresh, "new")
    assert fresh.status(NAME)["pin"] == f"{reference}@{new}"


def test_a_name_of_config_yaml_is_no_source(fresh: IIIProject, push: Push) -> None:
    reference, _ = push("one", "1")
    fresh.ok("worker", "add", reference)
    before = fresh.config.read_bytes(), (fresh.folder / "iii.lock").read_bytes()
    done = fresh.run("worker", "add", NAME)
    assert done.returncode == 1
    assert b"error: [W111] worker 'versioned' is in config.yaml already" in done.stderr
    assert (fresh.config.read_bytes(), (fresh.folder / "iii.lock").read_bytes()) == before


def test_a_file_is_not_called_a_folder(fresh: IIIProject) -> None:
    archive = fresh.folder / "math.tar"
    archive.write_bytes(b"")
    done = fresh.run("worker", "add", str(archive))
    assert done.returncode == 1
    assert b"is a file" in done.stderr
    assert f"docker-archive:{archive}".encode() in done.stderr


def test_a_snapshot_goes_with_what_it_was_of(fresh: IIIProject, push: Push) -> None:
    """Fetched again and found unchanged, a worker keeps its snapshot; moved to another image, it loses it."""
    reference, _ = push("old", "1")
    fresh.ok("worker", "add", reference)
    store = SnapshotStore(fresh.folder / ".iii" / "snapshots" / NAME)
    state = store.begin()
    state.mkdir(parents=True)
    store.commit(state, reference, {})
    assert b"snapshot" not in fresh.run("worker", "reinstall", NAME).stderr
    assert store.read() is not None
    push("new", "1")
    done = fresh.run("worker", "reinstall", NAME)
    assert b"Its snapshot was of what it was before, and is deleted." in done.stderr
    assert not store.folder.exists()
