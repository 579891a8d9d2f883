"""The few system calls of Linux that Python 3.11 does not wrap. Each raises ``OSError`` with the call's name.

Backends' helper programs use it too, right after they were started: it imports nothing of ours.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from pathlib import Path
from typing import Any

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_RELATIME = 0x20, 0x200000
MS_BIND, MS_REC, MS_PRIVATE, MS_SLAVE = 0x1000, 0x4000, 0x40000, 0x80000
MNT_DETACH = 2

_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522

_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442  # the same on every architecture
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_IDMAP = 0x00100000

_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_IFF_UP = 1
_INTERFACE_REQUEST = struct.Struct("=16sH22x")  # ifreq with ifr_flags

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    """``unshare(2)``."""
    _check(_libc.unshare(flags), "unshare")


def _prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), "prctl")


def end_with_parent(signal: int) -> None:
    """Be sent a signal when the thread that started us ends (``prctl(2)``, PR_SET_PDEATHSIG); changed ids forget it."""
    _prctl(_PR_SET_PDEATHSIG, signal)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends (``prctl(2)``, PR_SET_CHILD_SUBREAPER)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def enter_own_user_namespace() -> None:
    """Become root of a new user namespace, as an ordinary user may (``user_namespaces(7)``)."""
    uid, gid = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("gid_map", f"0 {gid} 1"), ("uid_map", f"0 {uid} 1")):
        Path(f"/proc/self/{name}").write_text(text, encoding="ascii")


def drop_capabilities() -> None:
    """Have none, for good (``capset(2)``; ``prctl(2)``, PR_SET_NO_NEW_PRIVS)."""
    header, nothing = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24)
    _check(_libc.capset(header, nothing), "capset")
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def empty_bounding_set() -> None:
    """Make what we have the last capabilities there are: what is dropped from now on can't come back.

    Root's ``execve`` grants the inheritable set and the bounding set (``capabilities(7)``). So ours become inheritable,
    which the next program can drop, and the bounding set becomes empty, which nobody can undo.
    """
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    sets = ctypes.create_string_buffer(24)
    _check(_libc.capget(header, sets), "capget")
    effective, permitted, _, effective_high, permitted_high, _ = struct.unpack("=6I", sets.raw)
    data = struct.pack("=6I", effective, permitted, permitted, effective_high, permitted_high, permitted_high)
    _check(_libc.capset(header, data), "capset")
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text(encoding="ascii"))
    for number in range(last + 1):
        _prctl(_PR_CAPBSET_DROP, number)


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """``mount(2)``."""
    encoded: list[Any] = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    call = _libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])
    _check(call, f"mount {kind or 'bind'} on {target}")


_SAME = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_NOATIME | os.ST_NODIRATIME  # ST_* is MS_* for these


def remount_read_only(target: str) -> None:
    """Make one mount read-only. Its other flags stay, as those must that are not ours (``mount_namespaces(7)``)."""
    found = os.statvfs(target).f_flag
    kept = found & _SAME | (MS_RELATIME if found & os.ST_RELATIME else 0)
    mount("none", target, None, MS_REMOUNT | MS_BIND | MS_RDONLY | kept)


def unmount(target: str) -> None:
    """``umount2(2)`` with MNT_DETACH: gone from here at once, freed when the last user is gone."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def keep_mounts_to_oneself() -> None:
    """What is mounted or unmounted from now on stays in this mount namespace; what others mount still shows."""
    mount("none", "/", None, MS_REC | MS_SLAVE)


def restrict_mounts(target: str, flags: int) -> None:
    """Set MS_RDONLY, MS_NOSUID, MS_NODEV of a mount and of all below it (``mount_setattr(2)``: since Linux 5.12)."""
    attributes = struct.pack("=QQQQ", flags, 0, 0, 0)  # MOUNT_ATTR_… have the same numbers
    call = _libc.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, os.fsencode(target), _AT_RECURSIVE, attributes, len(attributes))
    _check(call, "mount_setattr")


def clone_mount_idmapped(source: str, target: str, user_namespace: int) -> None:
    """Mount ``source`` again on ``target`` with ids of a user namespace (``mount_setattr(2)``, ID-mapped mounts)."""
    tree = _check(
        _libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(source), _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC),
        "open_tree",
    )
    try:
        attributes = struct.pack("=QQQQ", _MOUNT_ATTR_IDMAP, 0, 0, user_namespace)
        _check(
            _libc.syscall(_SYS_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, attributes, len(attributes)), "mount_setattr"
        )
        _check(
            _libc.syscall(_SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH),
            "move_mount",
        )
    finally:
        os.close(tree)


def bring_up(interface: str) -> None:
    """Bring a network interface up (``netdevice(7)``)."""
    name = interface.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        _, flags = _INTERFACE_REQUEST.unpack(fcntl.ioctl(sock, _SIOCGIFFLAGS, _INTERFACE_REQUEST.pack(name, 0)))
        fcntl.ioctl(sock, _SIOCSIFFLAGS, _INTERFACE_REQUEST.pack(name, flags | _IFF_UP))
