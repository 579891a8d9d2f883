"""Copies of sparse files that stay sparse."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING, Final

from iii_sandbox_libvirt.saveimage import private

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

_FICLONE: Final = 0x40049409  # ioctl_ficlone(2)


def copy_sparse(source: Path, target: Path) -> None:
    """Copy to a new file: shared blocks where the file system knows that, else all that is not a hole (lseek(2)).

    Blocking. Raises OSError, FileExistsError among them.
    """
    with source.open("rb") as file:
        copy_open(file, target)


def copy_open(file: BinaryIO, target: Path) -> None:
    """As `copy_sparse`, of an open file."""
    with open(target, "xb", opener=private) as out:
        try:
            fcntl.ioctl(out.fileno(), _FICLONE, file.fileno())
        except OSError:
            size = os.fstat(file.fileno()).st_size
            out.truncate(size)
            _copy_data(file.fileno(), out.fileno(), size)


def _copy_data(source: int, target: int, size: int) -> None:
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        end = os.lseek(source, at, os.SEEK_HOLE)
        os.lseek(target, at, os.SEEK_SET)
        while at < end:
            at += os.sendfile(target, source, at, end - at)
