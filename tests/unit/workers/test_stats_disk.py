"""What a worker's writable layers take on the disk: counted whatever the worker put there."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from iii_core.cli.worker.stats import render, size, with_cpu
from iii_core.workers.stats import allocated

BLOCK = 1 << 20


def later() -> float:
    return time.monotonic() + 30


def fill(path: Path, data: bytes = b"x" * BLOCK) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(data)
        os.fsync(file.fileno())  # blocks may be allocated no sooner


def test_files_count_once_whatever_they_are_called(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    fill(tree / "a/one")
    empty = allocated(tree, later())
    assert empty is not None
    assert BLOCK <= empty < BLOCK + 65536
    (tree / "b").hardlink_to(tree / "a/one")
    again = allocated(tree, later())
    assert again is not None
    assert again - empty < 65536


def test_holes_and_what_links_lead_to_do_not_count(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere/large")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "link").symlink_to(tmp_path / "elsewhere")
    (tree / "loop").symlink_to(tree)
    with (tree / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    found = allocated(tree, later())
    assert found is not None
    assert found < 65536


def test_nothing_is_nothing_and_odd_names_are_names(tmp_path: Path) -> None:
    assert allocated(tmp_path / "none", later()) == 0
    fill(tmp_path / "tree" / os.fsdecode(b"\xff\n"))
    assert (allocated(tmp_path / "tree", later()) or 0) >= BLOCK


def test_a_tree_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    fill(tmp_path / "file")
    assert allocated(tmp_path, time.monotonic() - 1) is None


def row(**facts: object) -> dict[str, object]:
    names = ("at", "cpu_seconds", "memory", "memory_limit", "processes", "disk", "disk_limit", "network", "note")
    return {"name": "a", "status": "running", **dict.fromkeys(names), **facts}


@pytest.mark.parametrize(
    ("before", "now", "percent"),
    [
        ((10.0, 1.0), (12.0, 2.0), 50.0),
        ((10.0, 1.0), (12.0, 5.0), 200.0),
        ((10.0, 1.0), (10.0, 1.0), None),
        ((10.0, 5.0), (12.0, 0.1), None),  # another run
        ((None, None), (12.0, 2.0), None),
        ((10.0, 1.0), (None, None), None),
    ],
)
def test_cpu_is_what_was_used_between_two_samples(
    before: tuple[object, ...], now: tuple[object, ...], percent: float | None
) -> None:
    rows = [row(at=at, cpu_seconds=seconds) for at, seconds in (before, now)]
    (found,) = with_cpu(rows[:1], rows[1:])
    assert found["cpu_percent"] == percent


def test_a_worker_that_came_meanwhile_has_no_rate() -> None:
    assert with_cpu([], [row(at=1.0, cpu_seconds=1.0)])[0]["cpu_percent"] is None


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (None, "-"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (100 << 20, "100 MiB"),
        (5 << 40, "5.0 TiB"),
        (9 << 50, "9216 TiB"),
    ],
)
def test_sizes_for_people(count: int | None, shown: str) -> None:
    assert size(count) == shown


def test_the_table_shows_limits_and_notes_and_no_escapes() -> None:
    rows = with_cpu([], [row(memory=1 << 20, memory_limit=1 << 30, disk=0, note="it\x1b[2J hangs")])
    shown = render(rows)
    assert "1.0 MiB / 1.0 GiB" in shown
    assert "a: it\\x1b[2J hangs" in shown
    assert render([]) == "  No workers that run in sandboxes."
