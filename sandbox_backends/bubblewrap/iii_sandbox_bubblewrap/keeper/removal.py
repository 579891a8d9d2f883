"""Deleting a tree that somebody hostile may have made."""

from __future__ import annotations

import os
from pathlib import Path


def remove_tree(path: str) -> None:
    """Delete a folder and everything in it; nothing there is no error.

    Folders inside are moved up to the top and emptied there one after another, so depth costs neither stack nor
    descriptors, and no path is ever followed. Needs the right to write everywhere in the tree (the keeper is root of
    its ids).
    """
    try:
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        prefix = f".{os.urandom(16).hex()}-"  # names that nobody could have taken
        waiting = _empty(top, top, prefix, 0)
        number = len(waiting)
        while waiting:
            name = waiting.pop()
            folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
            try:
                found = _empty(folder, top, prefix, number)
            finally:
                os.close(folder)
            number += len(found)
            waiting += found
            os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    Path(path).rmdir()


def _empty(folder: int, top: int, prefix: str, number: int) -> list[str]:
    """Delete the files of a folder and move its folders to the top; their names there."""
    os.fchmod(folder, 0o700)
    moved: list[str] = []
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        if not is_folder:
            os.unlink(name, dir_fd=folder)
        else:
            moved.append(f"{prefix}{number + len(moved)}")
            os.rename(name, moved[-1], src_dir_fd=folder, dst_dir_fd=top)
    return moved
