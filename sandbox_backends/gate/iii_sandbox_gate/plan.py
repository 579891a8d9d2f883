"""Planning a gate: from a spec's `Egress` to what the processes that make the gate are told."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from iii_core.errors import BackendUnavailable, SandboxRefused, UnsupportedOperation
from iii_core.sandbox.port import Capability
from iii_sandbox_gate.addresses import NAMESERVER, NETWORK, UPLINK_NETWORK
from iii_sandbox_gate.needs import find_lack, find_nft, find_slirp
from iii_sandbox_gate.own import own_networks
from iii_sandbox_gate.rules import Rules, render

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iii_core.sandbox.port import Egress

MTU: Final = 65520
MOST_NAMESERVERS: Final = 3
_UNREACHABLE: Final = tuple(map(ipaddress.ip_network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")))


@dataclass(frozen=True, slots=True, kw_only=True)
class GatePlan:
    """What to make.

    Attributes:
        nft: path of the program.
        rules: its input.
        uplink: program and options of the uplink (`iii_sandbox_gate.namespace.uplink_argv` has the rest).
        nameservers: what the sandbox is to ask, as ``/etc/resolv.conf`` has it.
    """

    nft: str
    rules: str
    uplink: tuple[str, ...]
    nameservers: tuple[str, ...]

    @property
    def resolv_conf(self) -> str:
        """The file of that name (``resolv.conf(5)``)."""
        return "".join(f"nameserver {address}\n" for address in self.nameservers)


def check_egress(egress: Egress, backend: str, environ: Mapping[str, str]) -> None:
    """Raise for what no gate can do here: what is asked is never ignored.

    Raises:
        UnsupportedOperation: IPv6, or this machine lacks what gates need.
        SandboxRefused: networks or name servers that could not be reached.
    """
    lack = find_lack(environ)
    if lack is not None:
        raise UnsupportedOperation(
            f"the sandbox backend {backend} cannot give network access here: {lack.reason}",
            hint=lack.hint,
            details={"backend": backend, "capability": Capability.EGRESS.value},
        )
    if len(egress.nameservers) > MOST_NAMESERVERS:
        raise SandboxRefused(
            f"{len(egress.nameservers)} name servers are more than programs ask",
            hint=f"name at most {MOST_NAMESERVERS} (resolv.conf(5))",
        )
    for text in egress.nameservers:
        _check_address(text)
    for text in (*egress.allow, *egress.nameservers):
        network = _network(text)
        if not isinstance(network, ipaddress.IPv4Network):
            raise UnsupportedOperation(
                f"{text} cannot be reached: sandboxes have no IPv6",
                hint="name IPv4 addresses",
                details={"backend": backend, "capability": Capability.EGRESS.value},
            )
        if network.overlaps(ipaddress.IPv4Network(NETWORK)):
            raise SandboxRefused(
                f"{text} cannot be reached: sandboxes use {NETWORK} themselves, which is nobody's (RFC 5737)",
                hint="leave it out",
            )
        if any(network.overlaps(closed) for closed in _UNREACHABLE):
            raise SandboxRefused(
                f"{text} cannot be reached from a sandbox: loopback, link-local and multicast addresses stay closed",
                hint="leave it out; without `nameservers`, this machine's own resolvers are asked",
            )


def egress_notes(egress: Egress | None, resolv_conf: Path = Path("/etc/resolv.conf")) -> tuple[str, ...]:
    """What the user of a sandbox with this network should know: for `Launcher.notes`."""
    if egress is None or egress.nameservers or _has_resolver(resolv_conf):
        return ()
    return (
        f"names cannot be looked up: {resolv_conf} of this machine names no resolver with an IPv4 address "
        "(`nameservers` of the worker's network may name some)",
    )


def _has_resolver(resolv_conf: Path) -> bool:
    """Whether slirp4netns finds somebody to hand queries to."""
    try:
        lines = resolv_conf.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    named = (line.split()[1] for line in lines if line.startswith("nameserver") and len(line.split()) > 1)
    return any("." in address and ":" not in address for address in named)


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise SandboxRefused(f"{text!r} is no network or address ({error})", hint="such as 10.1.0.0/16") from None


def _check_address(text: str) -> None:
    """Programs would skip a network in ``/etc/resolv.conf`` without a word."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise SandboxRefused(f"{text!r} is no address of a name server", hint="such as 10.1.0.53") from None


def plan_gate(egress: Egress, environ: Mapping[str, str], *, machine: bool = False) -> GatePlan:
    """Plan a gate for a sandbox that starts now: the machine's own addresses of this moment are closed.

    ``egress`` has passed `check_egress`; ``machine`` says that a virtual machine will be behind the gate. To be called
    in the network namespace that the uplink will run in. Raises `BackendUnavailable` if a program has gone, or the
    kernel does not tell its addresses.
    """
    slirp, nft = find_slirp(environ), find_nft(environ)
    if slirp is None or nft is None:
        lack = find_lack(environ)
        raise BackendUnavailable(
            lack.reason if lack else "network access is not possible", hint=lack.hint if lack else None
        )
    try:
        own = own_networks()
    except OSError as error:
        raise BackendUnavailable(f"this machine's own addresses are not known: {error}") from error
    allow = tuple(str(ipaddress.IPv4Network(text)) for text in egress.allow)
    rules = Rules(allow=allow, nameservers=egress.nameservers, own=own, machine=machine)
    return GatePlan(
        nft=nft,
        rules=render(rules),
        uplink=(slirp, *_uplink_options(own_dns=not egress.nameservers)),
        nameservers=egress.nameservers or (NAMESERVER,),
    )


def _uplink_options(*, own_dns: bool) -> tuple[str, ...]:
    """``slirp4netns(1)``: nothing of this machine's loopback, no rights but its sockets, no API socket, no IPv6."""
    return (
        "--configure",
        f"--mtu={MTU}",
        f"--cidr={UPLINK_NETWORK}",
        "--disable-host-loopback",
        "--enable-sandbox",
        "--enable-seccomp",
        *(() if own_dns else ("--disable-dns",)),
    )
