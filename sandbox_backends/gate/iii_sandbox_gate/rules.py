"""From what a sandbox may reach to the nftables ruleset (``nft(8)``) of its gate. Pure, golden-tested on the whole."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from iii_sandbox_gate.addresses import CLOSED, MACHINE, NAMESERVER

if TYPE_CHECKING:
    from collections.abc import Iterable

UPLINK: Final = "tap0"
"""The interface whose other end is outside."""
MACHINE_SIDE: Final = "tap1"
"""The interface whose other end is a virtual machine's network card."""
_REFUSE: Final = "reject with icmpx admin-prohibited"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a gate lets out; networks in CIDR notation, IPv4.

    Attributes:
        allow: networks that are reachable although they are not public.
        nameservers: whom DNS queries may go to, and nothing else; empty means the uplink's own.
        own: networks of which all addresses are this machine's own. They stay closed, whatever larger network is
            allowed, unless ``allow`` names them exactly.
        machine: a virtual machine is behind the gate, not a process inside it.
    """

    allow: tuple[str, ...] = ()
    nameservers: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    machine: bool = False


def render(rules: Rules) -> str:
    """The ruleset for a fresh network namespace.

    Everything is dropped that no rule lets pass, in either direction, before the uplink exists and when it is gone.
    What may leave is decided by the destination of each packet, so a name may resolve to anything. What comes in is
    an answer. The uplink carries no IPv6.
    """
    chains = [
        _chain("leaving", *_leaving(rules)),
        _hook("output", 'oifname "lo" accept', *_output(rules)),
        _hook("input", 'iifname "lo" accept', *([] if rules.machine else [f'iifname "{UPLINK}" {_ANSWERS}'])),
        _hook("forward", *_forward(rules)),
    ]
    if rules.machine:
        nat = "type nat hook postrouting priority srcnat; policy accept;"
        chains.append(_chain("hide", nat, f'oifname "{UPLINK}" masquerade'))
    return "table inet gate {\n" + "\n".join(chains) + "}\n"


_ANSWERS: Final = "ct state established,related accept"


def _leaving(rules: Rules) -> list[str]:
    named = [network for network in rules.own if network in rules.allow]
    steps = [
        (rules.nameservers or (NAMESERVER,), "meta l4proto { tcp, udp } th dport 53 accept"),
        (named, "accept"),
        (rules.own, _REFUSE),
        (rules.allow, "accept"),
        (CLOSED, _REFUSE),
    ]
    decided = [f"ip daddr {_set(networks)} {verdict}" for networks, verdict in steps if networks]
    return [*decided, "meta nfproto ipv4 accept", _REFUSE]


def _output(rules: Rules) -> list[str]:
    if rules.machine:  # the gate itself says no more than that it refused
        return [f'oifname "{MACHINE_SIDE}" meta l4proto icmp accept']
    return [f'oifname "{UPLINK}" goto leaving']


def _forward(rules: Rules) -> list[str]:
    if not rules.machine:
        return []
    return [
        f'iifname "{MACHINE_SIDE}" oifname "{UPLINK}" ip saddr {MACHINE} goto leaving',
        f'iifname "{UPLINK}" oifname "{MACHINE_SIDE}" {_ANSWERS}',
    ]


def _set(networks: Iterable[str]) -> str:
    """Collapsed: nftables refuses sets whose elements overlap."""
    merged = ipaddress.collapse_addresses(ipaddress.IPv4Network(network) for network in networks)
    return "{ " + ", ".join(str(network).removesuffix("/32") for network in merged) + " }"


def _hook(name: str, *steps: str) -> str:
    return _chain(name, f"type filter hook {name} priority filter; policy drop;", *steps)


def _chain(name: str, *steps: str) -> str:
    return f"\tchain {name} {{\n" + "".join(f"\t\t{step}\n" for step in steps) + "\t}\n"
