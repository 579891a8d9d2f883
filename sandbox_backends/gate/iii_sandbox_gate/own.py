"""Which addresses are this machine's own, as its routing tables have them (``rtnetlink(7)``)."""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_RTM_NEWROUTE: Final = 24
_RTM_GETROUTE: Final = 26
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_NLM_F_REQUEST: Final = 1
_NLM_F_DUMP: Final = 0x300
_RTN_LOCAL: Final = 2
_RTA_DST: Final = 1
_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr
_ROUTE: Final = struct.Struct("=8BI")  # rtmsg
_ATTRIBUTE: Final = struct.Struct("=HH")  # rtattr
_PIECE: Final = 1 << 17
_TIMEOUT: Final = 5.0


def own_networks() -> tuple[str, ...]:
    """The IPv4 networks of this network namespace of which every address is the machine itself; mostly single ones.

    Routes of type "local" are what the kernel delivers here, whichever interface or rule they come from.
    """
    request = _HEADER.pack(_HEADER.size + _ROUTE.size, _RTM_GETROUTE, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0)
    request += _ROUTE.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)
    found: set[str] = set()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
        netlink.settimeout(_TIMEOUT)
        netlink.sendto(request, (0, 0))
        while True:
            networks, done = parse_routes(netlink.recv(_PIECE))
            found.update(networks)
            if done:
                return tuple(sorted(found))


def parse_routes(data: bytes) -> tuple[list[str], bool]:
    """The local networks in a datagram of the kernel's answer, and whether it was the last. Raises ``OSError``."""
    found: list[str] = []
    while len(data) >= _HEADER.size:
        size, kind, _, _, _ = _HEADER.unpack_from(data)
        body = data[_HEADER.size : size]
        if kind == _NLMSG_DONE:
            return found, True
        if kind == _NLMSG_ERROR:
            number = -struct.unpack_from("=i", body)[0]
            raise OSError(number, "the kernel does not list its routes")
        if kind == _RTM_NEWROUTE:
            found += _local_network(body)
        data = data[_aligned(size) :]
    return found, False


def _local_network(body: bytes) -> Iterator[str]:
    _, prefix, _, _, _, _, _, kind, _ = _ROUTE.unpack_from(body)
    if kind != _RTN_LOCAL:
        return
    attributes = body[_ROUTE.size :]
    while len(attributes) >= _ATTRIBUTE.size:
        size, name = _ATTRIBUTE.unpack_from(attributes)
        if name == _RTA_DST:
            address = ipaddress.IPv4Address(attributes[_ATTRIBUTE.size : size])
            yield str(ipaddress.IPv4Network((address, prefix), strict=False))
        attributes = attributes[_aligned(max(size, _ATTRIBUTE.size)) :]


def _aligned(size: int) -> int:
    return (size + 3) & ~3
