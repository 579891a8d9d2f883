"""Whom QEMU runs as, and what they may open."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iii_core.errors import BackendUnavailable

if TYPE_CHECKING:
    from pathlib import Path

_READ = 4
_WRITE = 2
_PASS = 1


@dataclass(frozen=True, slots=True)
class User:
    """A user of this machine."""

    name: str
    uid: int
    gid: int

    @classmethod
    def named(cls, name: str) -> User:
        """Raises `BackendUnavailable` if there is no such user."""
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            raise BackendUnavailable(
                f"there is no user {name!r} for QEMU to run as",
                hint="apt install libvirt-daemon-system, which makes it, or set `user` of the libvirt backend",
            ) from None
        return cls(name, entry.pw_uid, entry.pw_gid)

    def may_write(self, path: Path) -> bool:
        """Whether the user may open it for writing, by its permissions alone."""
        return self._may(path, _WRITE)

    def barrier(self, path: Path, *, through_folders: bool) -> Path | None:
        """What keeps the user from reading a file: a folder on the way (if asked), or itself; None if nothing does."""
        if through_folders:
            for folder in reversed(path.absolute().parents):
                if not self._may(folder, _PASS):
                    return folder
        return None if self._may(path, _READ) else path

    def _may(self, path: Path, right: int) -> bool:
        """By owner, group or others: the first that applies decides (path_resolution(7))."""
        status = path.stat()
        if status.st_uid == self.uid:
            return bool(status.st_mode & right << 6)
        if status.st_gid in (self.gid, *os.getgrouplist(self.name, self.gid)):
            return bool(status.st_mode & right << 3)
        return bool(status.st_mode & right)
