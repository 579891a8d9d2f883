"""The few system calls of Linux that Python 3.11 does not wrap. Each raises ``OSError`` with the call's name."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
_MS_REC, _MS_SLAVE = 0x4000, 0x80000
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522

_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_IFF_UP = 1
_REQUEST = struct.Struct("=16sH22x")  # ifreq with ifr_flags


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """``unshare(2)``."""
    _check(_libc().unshare(flags), "unshare")


def keep_mounts_to_oneself() -> None:
    """What is mounted or unmounted from now on stays in this mount namespace."""
    _check(_libc().mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None), "mount")


def bring_up(interface: str) -> None:
    """Bring a network interface up (``netdevice(7)``)."""
    name = interface.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        _, flags = _REQUEST.unpack(fcntl.ioctl(sock, _SIOCGIFFLAGS, _REQUEST.pack(name, 0)))
        fcntl.ioctl(sock, _SIOCSIFFLAGS, _REQUEST.pack(name, flags | _IFF_UP))


def enter_own_user_namespace() -> None:
    """Become root of a new user namespace, as an ordinary user may (``user_namespaces(7)``)."""
    uid, gid = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("gid_map", f"0 {gid} 1"), ("uid_map", f"0 {uid} 1")):
        Path(f"/proc/self/{name}").write_text(text, encoding="ascii")


def drop_capabilities() -> None:
    """Have none, for good (``capset(2)``; ``prctl(2)``, PR_SET_NO_NEW_PRIVS)."""
    header, nothing = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24)
    _check(_libc().capset(header, nothing), "capset")
    _check(_libc().prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0), "prctl")
