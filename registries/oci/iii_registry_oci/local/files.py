"""Opening files whose names, or whose places, come from a stranger."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from iii_core.errors import ImageError, ImageNotFound, ImageUnsafe
from iii_registry_oci.layers.entry import printable
from iii_registry_oci.layers.limits import FULL
from iii_registry_oci.layers.spool import ReaderAt

if TYPE_CHECKING:
    from collections.abc import Generator

    from iii_registry_oci.reference import LocalReference

HOSTILE = "the image is damaged or hostile; nothing of it was stored"
_ABSENT = (errno.ENOENT, errno.ENOTDIR)
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Folder:
    """A folder in which only regular files are opened, without following a symbolic link.

    Its own path may go through links: the user chose it. It stays this folder if another one takes its place.
    """

    def __init__(self, reference: LocalReference) -> None:
        """Raises `ImageNotFound` where there is none."""
        self._label = reference.canonical
        with _readable(reference):
            self._folder = os.open(reference.path, os.O_PATH | os.O_DIRECTORY)

    def open(self, name: str) -> ReaderAt:
        """The file at ``name``, to be closed by the caller.

        Raises:
            FileNotFoundError: there is none.
            OSError: it cannot be opened.
            ImageUnsafe: it is no regular file, or a part of its name is no folder.
        """
        *folders, last = name.split("/")
        folder = os.dup(self._folder)
        try:
            for part in folders:
                below = os.open(part, os.O_PATH | os.O_NOFOLLOW, dir_fd=folder)
                os.close(folder)
                folder = below
                self._check(folder, name, stat.S_IFDIR)
            found = os.open(last, os.O_PATH | os.O_NOFOLLOW, dir_fd=folder)
        finally:
            os.close(folder)
        try:
            self._check(found, name, stat.S_IFREG)
            return _reopen(found)
        finally:
            os.close(found)

    def close(self) -> None:
        """Close the folder."""
        os.close(self._folder)

    def _check(self, descriptor: int, name: str, wanted: int) -> None:
        found = stat.S_IFMT(os.fstat(descriptor).st_mode)
        if found != wanted:
            kind = _KINDS.get(found, "a file")
            raise ImageUnsafe(
                f"{self._label}: '{printable(name.encode())}' is, or goes through, {kind}",
                hint="an image layout holds folders and regular files alone; `cp -rL` makes such a copy of a good one",
                details={"entry": name},
            )


def open_file(reference: LocalReference) -> ReaderAt:
    """The file that a reference names, to be closed by the caller; never waits for what is no regular file.

    Raises `ImageNotFound` where there is no regular file, `ImageError` where it cannot be opened.
    """
    with _readable(reference):
        found = os.open(reference.path, os.O_PATH)
        try:
            kind = stat.S_IFMT(os.fstat(found).st_mode)
            if kind != stat.S_IFREG:
                raise ImageNotFound(
                    f"{reference.canonical}: {reference.path} is {_KINDS.get(kind, 'no file')}, not a regular file",
                    hint="save the image to a file and name that",
                )
            return _reopen(found)
        finally:
            os.close(found)


@contextmanager
def readable(reference: LocalReference) -> Generator[None]:
    """Tell of what cannot be read in terms of the image; a full disk is told by whoever knows which one it is."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise
        raise ImageError(
            f"{reference.canonical} cannot be read: {error.strerror}", hint="check the path and its permissions"
        ) from error


@contextmanager
def _readable(reference: LocalReference) -> Generator[None]:
    with readable(reference):
        try:
            yield
        except OSError as error:
            if error.errno not in _ABSENT:
                raise
            raise ImageNotFound(
                f"{reference.canonical}: there is no such image", hint="check the path and the tag"
            ) from None


def _reopen(found: int) -> ReaderAt:
    """Open what was looked at, and nothing that took its place since.

    ``O_PATH`` before it looks without opening (which alone makes some devices do something), and ``O_NONBLOCK`` fails
    rather than waits where somebody holds a lease (fcntl(2)).
    """
    descriptor = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    file: IO[bytes] = os.fdopen(descriptor, "rb", buffering=0)
    return ReaderAt(file, os.fstat(descriptor).st_size)
