"""A virtual network card whose other end is a descriptor (the kernel's ``networking/tuntap.rst``, ``netdevice(7)``)."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from typing import Final

from iii_core.sandbox.linux import bring_up

TUN: Final = "/dev/net/tun"
_TUNSETIFF: Final = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_SIOCSIFADDR, _SIOCSIFNETMASK = 0x8916, 0x891C
_SIOCSIFHWADDR: Final = 0x8924
_ARPHRD_ETHER: Final = 1
_CREATE: Final = struct.Struct("=16sH22x")  # ifreq with ifr_flags
_HARDWARE: Final = struct.Struct("=16sH6s16x")  # ifreq with a sockaddr of ARPHRD_ETHER
_ADDRESS: Final = struct.Struct("=16sH2x4s16x")  # ifreq with a sockaddr_in


def open_tap(name: str, hardware: bytes, address: str, prefix: int) -> int:
    """Make a card of that name and addresses in this network namespace, and bring it up; it goes with the descriptor.

    Reads and writes are one Ethernet frame each, and do not block. Raises ``OSError``.
    """
    descriptor = os.open(TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, _CREATE.pack(name.encode(), _IFF_TAP | _IFF_NO_PI))
        mask = struct.pack("!I", (1 << 32) - (1 << (32 - prefix)))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            fcntl.ioctl(sock, _SIOCSIFHWADDR, _HARDWARE.pack(name.encode(), _ARPHRD_ETHER, hardware))
            for request, value in ((_SIOCSIFADDR, socket.inet_aton(address)), (_SIOCSIFNETMASK, mask)):
                fcntl.ioctl(sock, request, _ADDRESS.pack(name.encode(), socket.AF_INET, value))
        bring_up(name)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
