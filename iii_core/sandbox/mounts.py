"""Which folders of this machine a backend shows inside a sandbox, and where, whoever asks for it.

`iii_core.project.sandbox_settings` says the same sooner and by line; these rules hold for every caller of a backend.
"""

from __future__ import annotations

import itertools
import os
import posixpath
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Final

from iii_core.errors import SandboxRefused

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from iii_core.sandbox.port import Mount

MAX_MOUNTS: Final = 32
TARGET_TAKEN: Final = "nothing can be mounted on"
"""What those say who mount folders inside, where the image has something else in the way."""
TARGET_REMEDY: Final = "name another target in the worker's `mounts`, or make it a folder in the image"
_KERNEL: Final = ("/proc", "/sys", "/dev")
_PROVIDED: Final = (*_KERNEL, "/run/iii")
_HELD: Final = ("/", "/run", "/tmp")  # noqa: S108  # a place below these is one of the sandbox's own
_PRIVATE_NAME: Final = ".iii"


def check_mounts(mounts: Sequence[Mount], private: Iterable[Path]) -> None:
    """Raise `SandboxRefused` for a folder that may not be shown, or a place where none can be.

    A source must be a folder that this user may read (and write, if asked for). It must not be, hold or lie below
    ``/proc``, ``/sys``, ``/dev``, a ``.iii`` folder or one of the ``private`` paths, wherever symbolic links lead.
    """
    if len(mounts) > MAX_MOUNTS:
        raise SandboxRefused(f"{len(mounts)} mounts are too many", hint=f"at most {MAX_MOUNTS}")
    kept = [path.resolve() for path in (*map(Path, _KERNEL), *private)]
    for mount in mounts:
        _check_source(mount, kept)
        _check_target(mount.target)
    targets = sorted(PurePosixPath(mount.target) for mount in mounts)
    for above, below in itertools.pairwise(targets):
        if below.is_relative_to(above):
            raise _refused(str(below), f"it lies at or below {above}, another one", "give each a place of its own")


def resolved_source(mount: Mount) -> Path:
    """Where the source really is. Raises `SandboxRefused` if it is not there."""
    try:
        return mount.source.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise _refused(str(mount.source), str(error), "make the folder, or correct its path") from error


def _check_source(mount: Mount, kept: Iterable[PurePath]) -> None:
    source = resolved_source(mount)
    if not mount.source.is_absolute() or not source.is_dir():
        raise _refused(str(mount.source), "it is no folder by its absolute path", "name a folder")
    if _PRIVATE_NAME in source.parts:
        raise _refused(str(mount.source), f"{_PRIVATE_NAME} folders are private", "show another folder")
    for path in kept:
        if _related(source, path):
            raise _refused(str(mount.source), f"{path} may not be seen inside", "show a folder apart from it")
    wanted = os.R_OK | os.X_OK | (os.W_OK if mount.writable else 0)
    if not os.access(source, wanted):
        what = "read and write" if mount.writable else "read"
        raise _refused(str(mount.source), f"this user may not {what} it", "change its owner or mode")


def _check_target(target: str) -> None:
    if not target.startswith("/") or posixpath.normpath(target) != target or "\0" in target or "//" in target:
        raise _refused(target, "its place inside must be an absolute path without . and ..", "for instance /data")
    provided = [path for path in _PROVIDED if _related(PurePosixPath(target), PurePosixPath(path))]
    if provided or target in _HELD:
        raise _refused(target, f"every sandbox has a {[*provided, target][0]} of its own", "for instance /data")


def _related(one: PurePath, other: PurePath) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def _refused(path: str, why: str, hint: str) -> SandboxRefused:
    return SandboxRefused(f"{path} cannot be mounted: {why}", hint=hint, details={"path": path})
