"""The files beside a sandbox's disk while it is restored, and what becomes of them if that is cut off."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

DATA_DISK: Final = "data.img"
REVISED_MEMORY: Final = "memory"


@contextmanager
def removed(path: Path) -> Generator[Path]:
    """A file that does not outlive the block."""
    path.unlink(missing_ok=True)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def replaced(disk: Path) -> Generator[Path]:
    """A path for a new disk that may then be put in its place; the old one comes back if the block fails."""
    fresh, before = _fresh(disk), _before(disk)
    fresh.unlink(missing_ok=True)
    before.unlink(missing_ok=True)
    os.link(disk, before)
    try:
        yield fresh
        before.unlink()
    except BaseException:
        _put_back(disk)
        raise


def undo_cut_off(folder: Path) -> None:
    """Undo a restore whose process was killed: there is the disk of before, and no memory. Idempotent.

    Nobody was told that such a restore had succeeded, so today's files are the sandbox's. The guest must have ended.
    """
    (folder / REVISED_MEMORY).unlink(missing_ok=True)  # first: it holds secrets
    _put_back(folder / DATA_DISK)


def _put_back(disk: Path) -> None:
    before = _before(disk)
    if before.exists():
        before.replace(disk)
        before.unlink(missing_ok=True)  # rename(2) leaves alone what are two names of one file
    _fresh(disk).unlink(missing_ok=True)


def _fresh(disk: Path) -> Path:
    return disk.with_name(f"{disk.name}.new")


def _before(disk: Path) -> Path:
    return disk.with_name(f"{disk.name}.before")
