"""The whole ruleset of a gate, and whether nftables takes it."""

from __future__ import annotations

import ipaddress
import os
import subprocess

import pytest
from iii_sandbox_gate.addresses import CLOSED
from iii_sandbox_gate.rules import Rules, render

REFUSE = "reject with icmpx admin-prohibited"
SPECIAL = (
    "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 168.63.129.16, 169.254.0.0/16, 172.16.0.0/12, 192.0.0.0/24, "
    "192.0.2.0/24, 192.88.99.0/24, 192.168.0.0/16, 198.18.0.0/15, 198.51.100.0/24, 203.0.113.0/24, 224.0.0.0/3"
)
PLAIN = f"""\
table inet gate {{
	chain leaving {{
		ip daddr {{ 192.0.2.3 }} meta l4proto {{ tcp, udp }} th dport 53 accept
		ip daddr {{ 11.22.33.44, 127.0.0.0/8 }} {REFUSE}
		ip daddr {{ {SPECIAL} }} {REFUSE}
		meta nfproto ipv4 accept
		{REFUSE}
	}}

	chain output {{
		type filter hook output priority filter; policy drop;
		oifname "lo" accept
		oifname "tap0" goto leaving
	}}

	chain input {{
		type filter hook input priority filter; policy drop;
		iifname "lo" accept
		iifname "tap0" ct state established,related accept
	}}

	chain forward {{
		type filter hook forward priority filter; policy drop;
	}}
}}
"""
MACHINE = f"""\
table inet gate {{
	chain leaving {{
		ip daddr {{ 10.1.0.53, 10.1.1.53 }} meta l4proto {{ tcp, udp }} th dport 53 accept
		ip daddr {{ 10.1.0.7 }} accept
		ip daddr {{ 10.1.0.7, 10.1.0.8 }} {REFUSE}
		ip daddr {{ 10.1.0.0/16 }} accept
		ip daddr {{ {SPECIAL} }} {REFUSE}
		meta nfproto ipv4 accept
		{REFUSE}
	}}

	chain output {{
		type filter hook output priority filter; policy drop;
		oifname "lo" accept
		oifname "tap1" meta l4proto icmp accept
	}}

	chain input {{
		type filter hook input priority filter; policy drop;
		iifname "lo" accept
	}}

	chain forward {{
		type filter hook forward priority filter; policy drop;
		iifname "tap1" oifname "tap0" ip saddr 192.0.2.130 goto leaving
		iifname "tap0" oifname "tap1" ct state established,related accept
	}}

	chain hide {{
		type nat hook postrouting priority srcnat; policy accept;
		oifname "tap0" masquerade
	}}
}}
"""
RULES = {
    "process": Rules(own=("127.0.0.0/8", "11.22.33.44/32")),
    "machine": Rules(
        allow=("10.1.0.0/16", "10.1.0.7/32"),
        nameservers=("10.1.1.53", "10.1.0.53"),
        own=("10.1.0.7/32", "10.1.0.8/32"),
        machine=True,
    ),
}
EXPECTED = {"process": PLAIN, "machine": MACHINE}


@pytest.mark.parametrize("kind", RULES)
def test_rules(kind: str) -> None:
    assert render(RULES[kind]) == EXPECTED[kind]


@pytest.mark.integration
@pytest.mark.skipif(os.geteuid() != 0, reason="needs a network namespace of its own")
@pytest.mark.parametrize("kind", RULES)
def test_nftables_takes_them(kind: str) -> None:
    command = ["unshare", "--net", "sh", "-c", "nft -f - && nft list ruleset"]
    done = subprocess.run(command, input=render(RULES[kind]), capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("policy drop;") == 3
    assert done.stdout.count("reject with") == 3


def test_everything_that_must_be_closed_is() -> None:
    closed = [ipaddress.ip_network(text) for text in CLOSED]
    for text in (
        "10.0.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "100.100.100.200",
        "169.254.169.254",
        "127.0.0.53",
        "0.0.0.0",
    ):
        assert any(ipaddress.ip_address(text) in network for network in closed), text
    # by Python's copy of IANA's registry, all that is not global is closed; these blocks are all of it that is IPv4
    for number in range(0, 1 << 32, 1 << 15):
        address = ipaddress.IPv4Address(number)
        if not address.is_global or address.is_multicast:
            assert any(address in network for network in closed), address
