"""Deleting what a worker has written: trees whose owner inside the sandbox may have made them unreadable.

What belongs to a removed worker is renamed first, in one step, and deleted after that, which may take long: whoever is
added under the same name meanwhile begins with nothing and loses nothing. What is left half done is found by its name.
"""

from __future__ import annotations

import secrets
import shutil
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from iii_core.errors import ConfigIoError
from iii_core.project.files import hint_for

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_REMOVED: Final = ".removed-"  # no worker's name begins so


def set_aside(folder: Path) -> list[Path]:
    """Give the folder of a removed worker another name, for `drop_all`; a missing one, and a symbolic link, is none.

    Raises:
        ConfigIoError: it cannot be renamed.
    """
    if not folder.is_dir() or folder.is_symlink():
        return []
    try:
        return [folder.rename(folder.with_name(f"{_REMOVED}{folder.name}-{secrets.token_hex(6)}"))]
    except OSError as error:
        raise ConfigIoError(f"{folder} cannot be removed: {error.strerror}", hint=hint_for(error)) from error


def leftovers(parent: Path) -> list[Path]:
    """What was set aside in a folder and not deleted."""
    return [path for path in parent.iterdir() if path.name.startswith(_REMOVED)] if parent.is_dir() else []


def drop_all(folders: Iterable[Path]) -> None:
    """Delete those trees, all that can be. Raises `ConfigIoError` for one that cannot."""
    failed: OSError | None = None
    for folder in folders:
        try:
            drop_writable(folder)
        except OSError as error:
            failed = failed or error
    if failed is not None:
        raise ConfigIoError(f"{failed.filename} cannot be deleted: {failed.strerror}", hint=hint_for(failed))


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
