"""What somebody has put into the place of a worker's snapshot: refused with a code, and never waited for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from iii_core.errors import SnapshotUnusable
from iii_core.workers.snapshots import RECORD, SnapshotStore

FITS = {"image": "sha256:1"}


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    """A store with a snapshot."""
    made = SnapshotStore(tmp_path / "w")
    state = made.begin()
    state.mkdir()
    (state / "memory").write_text("memory")
    made.commit(state, "image", FITS)
    return made


def instead(path: Path, put: Callable[[Path], object]) -> None:
    path.unlink()
    put(path)


@pytest.mark.parametrize(
    ("put", "why"),
    [
        (os.mkfifo, "it is no regular file"),
        (Path.mkdir, "it is no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "Too many levels of symbolic links"),
        (lambda path: path.symlink_to("nowhere"), "Too many levels of symbolic links"),
        (lambda path: path.write_bytes(b"{" * (1 << 21)), "File too large"),
    ],
)
def test_another_thing_than_the_record(store: SnapshotStore, put: Callable[[Path], object], why: str) -> None:
    instead(store.folder / RECORD, put)
    for ask in (store.read, lambda: store.find(FITS)):
        with pytest.raises(SnapshotUnusable, match=why):
            ask()
    facts = store.facts()
    assert facts is not None
    assert why in facts["problem"]


@pytest.mark.parametrize(
    "change",
    [
        {"state": "state-"},
        {"state": "state-../../../x"},
        {"state": "state-" + "x" * 5000},
        {"state": "state-\0"},
        {"state": "state-0123456789ab\n"},
        {"taken": 1e300},
        {"taken": -1},
        {"taken": 10**400},
    ],
)
def test_a_record_that_no_engine_writes(store: SnapshotStore, change: dict[str, object]) -> None:
    record = store.folder / RECORD
    record.write_text(json.dumps({**json.loads(record.read_text()), **change}))
    with pytest.raises(SnapshotUnusable):
        store.find(FITS)
    facts = store.facts()
    assert facts is not None
    assert facts["problem"]


def test_a_link_in_the_place_of_the_state(store: SnapshotStore, tmp_path: Path) -> None:
    state = store.find(FITS)
    assert state is not None
    state.rename(tmp_path / "elsewhere")
    state.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SnapshotUnusable, match="is no folder of this user's"):
        store.find(FITS)


def test_a_link_in_the_place_of_the_snapshot(store: SnapshotStore, tmp_path: Path) -> None:
    store.folder.rename(tmp_path / "elsewhere")
    store.folder.symlink_to(tmp_path / "elsewhere")
    assert store.drop() is False
    assert not store.folder.is_symlink()
    assert (tmp_path / "elsewhere" / RECORD).exists()


def test_a_state_that_is_gone(store: SnapshotStore) -> None:
    state = store.find(FITS)
    assert state is not None
    (state / "memory").unlink()
    state.rmdir()
    with pytest.raises(SnapshotUnusable, match="is no folder of this user's"):
        store.find(FITS)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_belongs_to_somebody_else(store: SnapshotStore) -> None:
    """Root's engine in the project of an ordinary user, who may rename folders there."""
    state = store.find(FITS)
    assert state is not None
    for path, why in ((store.folder / RECORD, r"another user \(65534\)"), (state, "no folder of this user's")):
        os.chown(path, 65534, 65534)
        with pytest.raises(SnapshotUnusable, match=why):
            store.find(FITS)
        os.chown(path, 0, 0)
    assert store.find(FITS) == state
