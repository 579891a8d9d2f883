"""What the command line says of snapshots without an engine; the rest is tried end to end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from iii_core.cli.worker.status import render
from iii_core.workers.snapshots import SnapshotStore


@pytest.fixture
def store(project: Any) -> SnapshotStore:
    """The snapshot of ``running``."""
    made = SnapshotStore(project.root / ".iii" / "snapshots" / "running")
    state = made.begin()
    state.mkdir()
    (state / "memory").write_bytes(bytes(3_000_000))
    made.commit(state, "r/x:1", {})
    return made


def line_of(shown: str) -> str:
    return next((line for line in shown.splitlines() if line.strip().startswith("snapshot:")), "")


def test_status_shows_it(project: Any, store: SnapshotStore) -> None:
    done = project("worker", "status", "running", "--no-watch")
    assert "s ago), 3.0 MB" in line_of(done.err)
    facts = json.loads(project("worker", "status", "running", "--json").out)["snapshot"]
    assert (facts["image"], facts["problem"]) == ("r/x:1", None)
    assert time.time() - facts["taken"] < 60
    assert line_of(project("worker", "status", "still", "--no-watch").err) == ""


def test_status_shows_that_it_is_damaged(project: Any, store: SnapshotStore) -> None:
    (store.folder / "snapshot.json").write_text("{")
    assert "its record is damaged" in line_of(project("worker", "status", "running", "--no-watch").err)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "(0 s ago)"), (119, "(119 s ago)"), (600, "(10 min ago)"), (3 * 86400, "(3 d ago)")]
)
def test_ages(seconds: float, words: str) -> None:
    taken = {"taken": time.time() - seconds, "size": 1e6, "image": "x", "problem": None}
    facts = {"name": "w", "status": "running", "warm": True, "pid": 7, "snapshot": taken, "logs": ""}
    shown = line_of(render(facts))
    assert words in shown
    assert shown.endswith("1.0 MB; it was started from it")


def test_remove_deletes_it_with_and_without_the_worker(project: Any, store: SnapshotStore) -> None:
    done = project("worker", "snapshot", "running", "--remove")
    assert (done.code, done.err) == (0, "  ✓ the snapshot of running is deleted\n")
    assert not store.folder.exists()
    assert project("worker", "snapshot", "running", "--remove").err == "  ✓ running has no snapshot\n"
    again = SnapshotStore(store.folder)
    state = again.begin()
    state.mkdir()
    again.commit(state, "r/x:1", {})
    assert project("worker", "remove", "-y", "running").code == 0
    assert not store.folder.exists()


def test_saving_needs_an_engine_and_a_worker(project: Any) -> None:
    for arguments, code in ((["still"], "W201"), (["nobody"], "W112"), (["../x"], "W100"), ([], "Missing argument")):
        done = project("worker", "snapshot", *arguments)
        assert done.code != 0
        assert code in done.err
    assert "W106" in project("worker", "snapshot", "iii-http", "--remove").err
    assert not Path(project.root, ".iii", "snapshots").exists()
