"""Who may open a connection on a listener: pure rules over the request (design §4, security: local listeners).

A web page can make its visitor's browser open WebSockets to this machine (cross-site hijacking: the browser sends
the page's ``Origin``), and can point its own name at 127.0.0.1 (DNS rebinding: the browser sends that name as
``Host``). So the trusted listener refuses every ``Origin`` that is not allowed by name, and every ``Host`` that is
neither loopback, the address it is bound to, nor allowed by name. SDK clients send no ``Origin``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

from iii_core.transport.port import Rejection

if TYPE_CHECKING:
    from iii_core.transport.port import ConnectionRequest

WORKER_PATH: Final = "/"
TELEMETRY_PATH: Final = "/otel"
CHANNEL_PREFIX: Final = "/ws/channels/"

_UNSPECIFIED: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - recognised here, not bound to


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionRules:
    """What one listener lets in.

    Attributes:
        bound_host: the address the listener is bound to, which may be named as ``Host`` unless it is unspecified.
        allowed_hosts: further ``Host`` names, without port, any case.
        allowed_origins: ``Origin`` values to let in, such as ``https://console.example``, compared without regard to
            case; ``*`` allows any, ``null`` the opaque origin.
    """

    bound_host: str = "127.0.0.1"
    allowed_hosts: Collection[str] = ()
    allowed_origins: Collection[str] = ()


def admit(rules: AdmissionRules, request: ConnectionRequest) -> Rejection | None:
    """None to let a request in, else the HTTP answer: 403 for Host and Origin, 404 for the path, 400 for a bad query.

    Checked in the order host, origin, path, query, so that a stranger learns nothing about paths.
    """
    hosts = [value for name, value in request.headers if name == "host"]
    if len(hosts) > 1 or not _host_allowed(rules, hosts):
        return Rejection(status=403, body="this Host is not allowed here (allowed_hosts)")
    origins = [value for name, value in request.headers if name == "origin"]
    if origins and (len(origins) > 1 or not _origin_allowed(rules, origins[0])):
        return Rejection(status=403, body="this Origin is not allowed here (allowed_origins)")
    if request.path in {WORKER_PATH, TELEMETRY_PATH}:
        return None
    if request.path.startswith(CHANNEL_PREFIX) and len(request.path) > len(CHANNEL_PREFIX):
        return _admit_channel(request)
    return Rejection(status=404, body="Not found")


def _admit_channel(request: ConnectionRequest) -> Rejection | None:
    query = parse_qs(request.query, keep_blank_values=True) if len(request.query) < 4096 else {}
    key, direction = query.get("key", [""]), query.get("dir", [""])
    if len(key) != 1 or not key[0] or direction not in (["read"], ["write"]):
        return Rejection(status=400, body="a channel needs key=… and dir=read or dir=write")
    return None


def host_name(header: str) -> str | None:
    """The host of a ``Host`` header in lower case, without port and brackets; None if malformed (RFC 9110 §7.2)."""
    text = header.strip().lower()
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or (port and not _is_port(port)):
            return None
        try:
            return str(ipaddress.IPv6Address(host))
        except ValueError:
            return None
    host, colon, port = text.partition(":")
    if colon and not _is_port(":" + port):
        return None
    host = host.removesuffix(".")
    return host or None


def is_loopback(host: str) -> bool:
    """Whether a host name means this machine alone: ``localhost``, names below it, 127.0.0.0/8, ``::1``."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_port(text: str) -> bool:
    digits = text[1:]
    return text.startswith(":") and (
        not digits or (digits.isascii() and digits.isdecimal() and int(digits[:6]) < 65536)
    )


def _host_allowed(rules: AdmissionRules, hosts: list[str]) -> bool:
    host = host_name(hosts[0]) if hosts else None
    if host is None:
        return False
    if is_loopback(host) or host in {allowed.lower() for allowed in rules.allowed_hosts}:
        return True
    bound = host_name(f"[{rules.bound_host}]" if ":" in rules.bound_host else rules.bound_host)
    return host == bound and bound not in _UNSPECIFIED


def _origin_allowed(rules: AdmissionRules, origin: str) -> bool:
    allowed = {value.lower().rstrip("/") for value in rules.allowed_origins}
    return "*" in allowed or origin.strip().lower() in allowed
