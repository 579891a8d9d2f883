"""Which IPv4 addresses are not public, and which ones a gate itself uses. Pure."""

from __future__ import annotations

from typing import Final

CLOSED: Final = (
    "0.0.0.0/8",  # "this network": Linux takes 0.0.0.0 for the machine itself
    "10.0.0.0/8",
    "100.64.0.0/10",  # shared between a carrier and its customers; the metadata of Alibaba Cloud
    "127.0.0.0/8",
    "168.63.129.16/32",  # looks public, and is the host of a machine in Azure, with its metadata
    "169.254.0.0/16",  # link-local: most clouds keep their metadata there
    "172.16.0.0/12",
    "192.0.0.0/24",  # protocol assignments; the metadata of Oracle's cloud
    "192.0.2.0/24",
    "192.88.99.0/24",  # 6to4 relays, deprecated: what comes after may be any address
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",  # reserved, and limited broadcast
)
"""What is not globally reachable by IANA's registry of special-purpose addresses (RFC 6890), multicast (RFC 5771), and
one address of a cloud. https://www.iana.org/assignments/iana-ipv4-special-registry"""

NETWORK: Final = "192.0.2.0/24"
"""What gates use inside: addresses for documentation (RFC 5737), so nobody has anything there that could be missed."""
UPLINK_NETWORK: Final = "192.0.2.0/25"
NAMESERVER: Final = "192.0.2.3"
"""Where the uplink answers DNS queries: it hands them on to this machine's own resolvers."""
MACHINE: Final = "192.0.2.130"
"""A virtual machine behind a gate, and its gateway."""
MACHINE_GATEWAY: Final = "192.0.2.129"
MACHINE_PREFIX: Final = 25
