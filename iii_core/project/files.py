"""Writing files so that a crash, a full disk or a second writer never leaves half of one, and reading what we wrote."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from typing import TYPE_CHECKING, Final

from iii_core.errors import ConfigIoError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644, shrinking: bool = False) -> None:
    """Replace ``path`` by ``data``: temporary file beside it, fsync, rename, fsync of the folder.

    An existing file keeps its permissions, and its owner where we may set it; a symbolic link keeps pointing at the
    file, which is what is replaced. ``mode`` (less the umask) is for a new file. Readers see the old or the new
    content, never a mixture, and after an error the old file is untouched and no temporary file is left.

    ``shrinking`` is for what frees space: on a full disk, a text that is not longer is written over the old one.

    Raises `ConfigIoError`.
    """
    try:
        target = path.resolve()
        try:
            _replace(target, data, mode)
        except OSError as error:
            if not (shrinking and error.errno in _FULL and len(data) <= target.stat().st_size):
                raise
            _overwrite(target, data)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise ConfigIoError(
            f"cannot write {path}: {reason}", hint=hint_for(error), details={"path": str(path)}
        ) from error


def open_own(path: Path) -> BinaryIO:
    """Open what nobody but us can have written: a regular file of ours, and no link, pipe or device in its place.

    A link could lead to what we may read and others may not, and a pipe or ``/dev/zero`` has no end. Raises `OSError`.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        if found.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, f"it belongs to another user ({found.st_uid})", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_own(path: Path, limit: int) -> bytes:
    """The content of a file as of `open_own`, of at most ``limit`` bytes. Raises `OSError`."""
    with open_own(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return data


def hint_for(error: Exception) -> str | None:
    """What helps against a file that cannot be written, where that is clear."""
    return "free some disk space" if getattr(error, "errno", None) in _FULL else None


def _replace(target: Path, data: bytes, mode: int) -> None:
    try:
        old = target.stat()
    except FileNotFoundError:
        old = None
    if old is not None and not stat.S_ISREG(old.st_mode):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    temporary = target.with_name(f".{target.name[:200]}.tmp.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if old is not None:
                _take_over(file.fileno(), old)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(target.parent)


def _overwrite(target: Path, data: bytes) -> None:
    """Write over a file that is at least as long: it has the blocks already."""
    with target.open("r+b") as file:
        file.write(data)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def _take_over(descriptor: int, old: os.stat_result) -> None:
    """Give a new file the owner and the mode of the old one; another's file that we may only write becomes ours."""
    with contextlib.suppress(PermissionError):
        os.fchown(descriptor, old.st_uid, old.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(old.st_mode))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
