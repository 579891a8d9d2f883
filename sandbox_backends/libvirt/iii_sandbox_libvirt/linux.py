"""The few system calls of Linux that Python 3.11 does not wrap. Each raises ``OSError`` with the call's name.

Imports nothing of ours: `iii_sandbox_libvirt.shareserver` is a program that needs little more.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Any, Final

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUSER: Final = 0x10000000
MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_REMOUNT: Final = 0x20
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_SLAVE: Final = 0x80000
_MNT_DETACH: Final = 2
_PR_SET_PDEATHSIG: Final = 1
_SYS_MOUNT_SETATTR: Final = 442  # the same on every architecture
_AT_FDCWD: Final = -100
_AT_RECURSIVE: Final = 0x8000


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """``unshare(2)``."""
    _check(_libc().unshare(flags), "unshare")


def end_with_parent(signal: int) -> None:
    """``prctl(2)``, PR_SET_PDEATHSIG."""
    _check(_libc().prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal), 0, 0, 0), "prctl")


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """``mount(2)``."""
    words: list[Any] = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    _check(_libc().mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]), f"mount on {target}")


def unmount(target: str) -> None:
    """``umount2(2)`` with MNT_DETACH: gone from here at once, freed when the last user is gone."""
    _check(_libc().umount2(os.fsencode(target), _MNT_DETACH), f"umount {target}")


def restrict_mounts(target: str, flags: int) -> None:
    """Set MS_RDONLY, MS_NOSUID, MS_NODEV of a mount and of all below it (``mount_setattr(2)``: since Linux 5.12)."""
    attributes = struct.pack("=QQQQ", flags, 0, 0, 0)  # MOUNT_ATTR_… have the same numbers
    call = _libc().syscall(
        _SYS_MOUNT_SETATTR, _AT_FDCWD, os.fsencode(target), _AT_RECURSIVE, attributes, len(attributes)
    )
    _check(call, "mount_setattr")
