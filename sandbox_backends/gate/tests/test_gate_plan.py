"""From a wish for network access to a plan; what this machine calls its own; what it lacks."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from iii_sandbox_gate.addresses import NAMESERVER
from iii_sandbox_gate.namespace import uplink_argv
from iii_sandbox_gate.needs import find_lack, find_nft
from iii_sandbox_gate.own import own_networks, parse_routes
from iii_sandbox_gate.plan import check_egress, egress_notes, plan_gate

from iii_core.errors import BackendUnavailable, IIIError, SandboxError, UnsupportedOperation
from iii_core.sandbox.port import Egress

LOOPBACK_ONLY = """
import json
from iii_sandbox_gate.own import own_networks
print(json.dumps(own_networks()))
"""


def route(kind: int, prefix: int, *attributes: tuple[int, bytes]) -> bytes:
    """One RTM_NEWROUTE message (rtnetlink(7))."""
    body = struct.pack("=8BI", socket.AF_INET, prefix, 0, 0, 255, 2, 254, kind, 0)
    for name, value in attributes:
        body += struct.pack("=HH", 4 + len(value), name) + value + bytes(-len(value) % 4)
    return struct.pack("=IHHII", 16 + len(body), 24, 2, 1, 0) + body


def test_routes_are_read() -> None:
    address = (1, socket.inet_aton("10.1.2.3"))
    table = (15, struct.pack("=I", 255))
    odd = (9, b"odd")  # padded to a multiple of 4
    done = struct.pack("=IHHIIi", 20, 3, 2, 1, 0, 0)
    assert parse_routes(route(2, 32, table, odd, address) + route(1, 24, address)) == (["10.1.2.3/32"], False)
    assert parse_routes(route(2, 8, address) + done) == (["10.0.0.0/8"], True)
    assert parse_routes(b"") == ([], False)
    with pytest.raises(PermissionError):
        parse_routes(struct.pack("=IHHIIi", 20, 2, 0, 1, 0, -1))


def test_own_networks_of_here() -> None:
    assert "127.0.0.0/8" in own_networks()


@pytest.mark.integration
@pytest.mark.skipif(os.geteuid() != 0, reason="needs a network namespace of its own")
def test_own_networks_of_a_machine() -> None:
    """Also those that belong to no interface."""
    steps = (
        "ip link set lo up; ip link add own0 type veth peer name far0; ip addr add 11.22.33.44/24 dev own0; "
        "ip link set own0 up; "
        'ip route add local 44.55.66.0/24 dev lo; exec $0 -c "$1"'
    )
    command = ["unshare", "--net", "sh", "-c", steps, sys.executable, LOOPBACK_ONLY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
    assert '["11.22.33.44/32", "127.0.0.0/8", "127.0.0.1/32", "44.55.66.0/24"]' in done.stdout


def test_plan() -> None:
    if find_lack(os.environ) is not None:
        pytest.skip("needs slirp4netns and nft")
    plan = plan_gate(Egress(allow=("10.2.0.0/16",)), os.environ)
    assert plan.resolv_conf == f"nameserver {NAMESERVER}\n"
    assert "--disable-host-loopback" in plan.uplink
    assert "--disable-dns" not in plan.uplink
    assert "10.2.0.0/16 } accept" in plan.rules
    own = plan_gate(Egress(nameservers=("10.2.0.53",)), os.environ, machine=True)
    assert own.resolv_conf == "nameserver 10.2.0.53\n"
    assert "--disable-dns" in own.uplink
    assert "masquerade" in own.rules


def test_the_uplinks_command_line() -> None:
    assert uplink_argv(["slirp", "--x"], "/proc/7/ns/net", ready=3) == [
        *("slirp", "--x", "--ready-fd=3", "--netns-type=path", "/proc/7/ns/net", "tap0")
    ]
    assert "--exit-fd=5" in uplink_argv(["slirp"], "/n", ready=3, leave=5)


@pytest.mark.parametrize(
    ("egress", "kind"),
    [
        (Egress(allow=("fd00::/8",)), UnsupportedOperation),
        (Egress(nameservers=("::1",)), UnsupportedOperation),
        (Egress(allow=("192.0.2.128/25",)), SandboxError),
        (Egress(nameservers=("127.0.0.1",)), SandboxError),
        (Egress(nameservers=("0.0.0.0",)), SandboxError),
        (Egress(allow=("169.254.169.254/32",)), SandboxError),
        (Egress(allow=("10.0.0.1/8",)), SandboxError),
        (Egress(nameservers=("x; accept",)), SandboxError),
        (Egress(nameservers=("10.0.0.0/8",)), SandboxError),
        (Egress(nameservers=("9.9.9.9/32",)), SandboxError),
        (Egress(nameservers=("9.9.9.1", "9.9.9.2", "9.9.9.3", "9.9.9.4")), SandboxError),
    ],
)
def test_what_cannot_be_had(egress: Egress, kind: type[IIIError]) -> None:
    if find_lack(os.environ) is not None:
        pytest.skip("needs slirp4netns and nft")
    with pytest.raises(kind) as caught:
        check_egress(egress, "x", os.environ)
    assert caught.value.hint
    check_egress(Egress(allow=("10.0.0.0/8", "168.63.129.16/32"), nameservers=("10.0.0.1", "9.9.9.9")), "x", os.environ)


@pytest.mark.parametrize(
    ("text", "works"),
    [
        ("nameserver 127.0.0.53\noptions edns0\n", True),
        ("# nameserver 9.9.9.9\nnameserver fd00::53\n", False),
        ("nameserver fe80::1%eth0\nnameserver 10.0.0.53", True),
        ("nameserver\nsearch example.org", False),
        (None, False),
    ],
)
def test_a_machine_without_resolvers_is_noted(tmp_path: Path, text: str | None, works: bool) -> None:
    path = tmp_path / "resolv.conf"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    assert (egress_notes(Egress(), path) == ()) is works
    assert egress_notes(Egress(nameservers=("9.9.9.9",)), path) == ()
    assert egress_notes(None, path) == ()


def test_what_is_missing(tmp_path: Path) -> None:
    tun = tmp_path / "tun"
    for name in ("slirp4netns", "nft"):
        lack = find_lack({"PATH": str(tmp_path)}, tun)
        assert lack is not None
        if find_nft({"PATH": str(tmp_path)}) is None or name == "slirp4netns":
            assert name in lack.reason
            assert lack.hint.startswith("apt install")
        (tmp_path / name).touch(mode=0o755)
    lack = find_lack({"PATH": str(tmp_path)}, tun)
    assert lack is not None
    assert lack.hint == "as root: modprobe tun"
    tun.touch(mode=0o000)
    if os.geteuid() != 0:
        lack = find_lack({"PATH": str(tmp_path)}, tun)
        assert lack is not None
        assert lack.hint == f"as root: chmod 666 {tun}"
    tun.chmod(0o666)
    assert find_lack({"PATH": str(tmp_path)}, tun) is None
    with pytest.raises(BackendUnavailable):
        plan_gate(Egress(), {"PATH": str(tmp_path / "nothing")})
