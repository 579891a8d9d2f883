"""Writable layers are deleted whatever the sandbox did to them, and nothing else is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iii_core.workers.writable import drop_writable

if TYPE_CHECKING:
    from pathlib import Path


def test_a_tree_that_was_made_unreadable_goes(tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    deep = layer / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "file").write_text("x")
    deep.chmod(0)
    (layer / "a").chmod(0)
    drop_writable(layer)
    assert not layer.exists()


def test_links_are_not_followed_and_absence_is_fine(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir(mode=0o750)
    (kept / "file").write_text("x")
    layer = tmp_path / "layer"
    layer.mkdir()
    (layer / "link").symlink_to(kept)
    drop_writable(layer)
    (tmp_path / "alias").symlink_to(kept)
    drop_writable(tmp_path / "alias")
    drop_writable(tmp_path / "missing")
    assert (kept / "file").read_text() == "x"
    assert kept.stat().st_mode & 0o777 == 0o750
