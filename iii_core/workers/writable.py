"""Deleting a worker's writable layers: trees whose owner inside the sandbox may have made them unreadable."""

from __future__ import annotations

import shutil
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def drop_writable(folder: Path) -> None:
    """Delete the tree; a missing one is fine. Never follows symbolic links.

    Raises:
        OSError: something in it belongs to an id that this user may not touch.
    """
    if not folder.is_dir() or folder.is_symlink():
        return
    _make_accessible(folder)
    shutil.rmtree(folder)


def _make_accessible(folder: Path) -> None:
    """Give ourselves every folder of the tree; top down, so that each is open before it is looked into."""
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        with suppress(PermissionError):  # then rmtree says what is in the way
            current.chmod(stat.S_IRWXU)
            waiting += [child for child in current.iterdir() if child.is_dir() and not child.is_symlink()]
