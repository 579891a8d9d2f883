"""The snapshot of a worker on disk: what it fits to, that it is replaced whole, and that nothing else stays."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from iii_core.errors import SnapshotUnusable
from iii_core.images.port import Image, ImageConfig
from iii_core.sandbox.port import Egress, Isolation, Limits, Mount, RootImage
from iii_core.workers.plan import WorkerPlan, plan_worker
from iii_core.workers.snapshots import SnapshotStore, what_it_fits
from iii_core.workers.spec import WorkerSpec

SPEC = WorkerSpec(name="w", source="image", env={"TOKEN": "secret"})
IMAGE = Image(
    reference="image",
    digest="sha256:1",
    name="w",
    config=ImageConfig(entrypoint=("run",)),
    root=RootImage(path=Path("/none"), format="squashfs", digest="sha256:1"),
    size=0,
)


def plan_of(spec: WorkerSpec = SPEC, image: Image = IMAGE, port: int = 49134) -> WorkerPlan:
    return plan_worker(spec, image, engine_port=port, isolation=Isolation.NONE)


FITS = what_it_fits(SPEC, IMAGE, "memory", plan_of())


def save(store: SnapshotStore, text: str = "memory") -> Path:
    """A state, committed."""
    state = store.begin()
    (state / "deep").mkdir(parents=True)
    (state / "deep" / "memory").write_text(text)
    store.commit(state, "image", FITS)
    return state


def test_it_is_found_where_everything_is_the_same(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "w")
    assert (store.read(), store.find(FITS), store.facts(), store.drop()) == (None, None, None, False)
    state = save(store)
    assert store.find(FITS) == state
    facts = store.facts()
    assert facts is not None
    assert facts["image"] == "image"
    assert facts["size"] >= 512
    assert store.find(what_it_fits(SPEC, IMAGE, "memory", plan_of())) == state


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("backend", what_it_fits(SPEC, IMAGE, "other", plan_of())),
        ("image", what_it_fits(SPEC, replace(IMAGE, digest="sha256:2"), "memory", plan_of())),
        ("environment", what_it_fits(SPEC, IMAGE, "memory", plan_of(replace(SPEC, env={"TOKEN": "other"})))),
        ("environment", what_it_fits(SPEC, IMAGE, "memory", plan_of(port=50000))),
        ("limits", what_it_fits(SPEC, IMAGE, "memory", plan_of(replace(SPEC, limits=Limits(cpus=3))))),
        ("network", what_it_fits(replace(SPEC, egress=Egress()), IMAGE, "memory", plan_of())),
        (
            "mounts",
            what_it_fits(replace(SPEC, mounts=(Mount(source=Path("/a"), target="/b"),)), IMAGE, "memory", plan_of()),
        ),
        ("program", what_it_fits(SPEC, IMAGE, "memory", replace(plan_of(), cwd="/elsewhere"))),
        ("program", what_it_fits(SPEC, IMAGE, "memory", replace(plan_of(), argv=("walk",)))),
        ("user", what_it_fits(SPEC, IMAGE, "memory", replace(plan_of(), uid=7))),
    ],
)
def test_what_differs_is_named_and_no_secret_is_told(tmp_path: Path, name: str, fits: dict[str, str]) -> None:
    store = SnapshotStore(tmp_path / "w")
    save(store)
    with pytest.raises(SnapshotUnusable, match=f"of another {name}$") as caught:
        store.find(fits)
    assert caught.value.details["differing"] == [name]
    assert "secret" not in (tmp_path / "w" / "snapshot.json").read_text()
    assert "secret" not in repr(caught.value)


def test_a_new_one_replaces_the_old_whole(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "w")
    first = save(store, "first")
    half = store.begin()
    half.mkdir()
    (half.with_name(f".{half.name}.saving")).mkdir()
    assert store.find(FITS) == first
    second = save(store, "second")
    assert store.find(FITS) == second
    assert sorted(path.name for path in store.folder.iterdir()) == ["snapshot.json", second.name]


def test_a_commit_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SnapshotStore(tmp_path / "w")
    first = save(store)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(store)
    store.sweep()
    assert store.find(FITS) == first
    assert sorted(path.name for path in store.folder.iterdir()) == ["snapshot.json", first.name]


def test_it_is_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = SnapshotStore(tmp_path / "w")
        state = save(store)
    finally:
        os.umask(before)
    assert store.folder.stat().st_mode & 0o777 == 0o700
    for path in (state / "deep" / "memory", store.folder / "snapshot.json"):
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "format 2, known is 1"),
        ({"state": "../../etc"}, "names no state"),
        ({"state": "state-/../.."}, "names no state"),
        ({"fits": 7}, "damaged"),
    ],
)
def test_a_record_that_is_not_understood_is_left_alone(tmp_path: Path, change: dict[str, object], words: str) -> None:
    store = SnapshotStore(tmp_path / "w")
    state = save(store)
    record = store.folder / "snapshot.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), **change}))
    with pytest.raises(SnapshotUnusable, match=words) as caught:
        store.find(FITS)
    assert caught.value.code == "W238"
    facts = store.facts()
    assert facts is not None
    assert words in facts["problem"]
    store.sweep()
    assert state.exists()
    assert store.drop()
    assert not store.folder.exists()


def test_half_a_record_is_damage(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "w")
    save(store)
    (store.folder / "snapshot.json").write_text("{")
    with pytest.raises(SnapshotUnusable, match="damaged"):
        store.find(FITS)


def test_sweeping_what_never_became_one_leaves_no_folder(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "w")
    store.begin().mkdir()
    store.sweep()
    assert not store.folder.exists()
    store.sweep()
