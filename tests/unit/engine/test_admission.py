"""Cross-site hijacking and DNS rebinding: every combination of Origin, Host and path has one exact verdict."""

from __future__ import annotations

import itertools

import pytest

from iii_core.engine.admission import AdmissionRules, admit, host_name
from iii_core.transport.port import ConnectionRequest

RULES = AdmissionRules(
    bound_host="192.0.2.7",
    allowed_hosts=("iii.example", "V6.example"),
    allowed_origins=("https://console.example", "http://localhost:3113"),
)

HOSTS: dict[str | None, bool] = {
    None: False,
    "": False,
    "localhost": True,
    "localhost:49134": True,
    "LOCALHOST:1": True,
    "localhost.": True,
    "app.localhost:49134": True,
    "127.0.0.1": True,
    "127.0.0.1:49134": True,
    "127.8.9.10": True,
    "[::1]": True,
    "[::1]:49134": True,
    "[0:0:0:0:0:0:0:1]:80": True,
    "192.0.2.7:49134": True,
    "iii.example": True,
    "IIi.Example:443": True,
    "v6.example": True,
    "192.0.2.8": False,
    "evil.example": False,
    "evil.example:49134": False,
    "localhost.evil.example": False,
    "127.0.0.1.evil.example": False,
    "evil.example#localhost": False,
    "localhost@evil.example": False,
    "evil.example/localhost": False,
    "xlocalhost": False,
    "0.0.0.0": False,
    "[::]": False,
    "[::ffff:192.0.2.8]": False,
    "::1": False,
    "[::1": False,
    "[::1]x": False,
    "[localhost]": False,
    "localhost:port": False,
    "localhost:-1": False,
    "localhost:99999": False,
    "localhost:1:2": False,
    "localhost, evil.example": False,
    "2130706433": False,
    "0x7f.1": False,
    "127.1": False,
    ":49134": False,
    ".": False,
}
ORIGINS: dict[str | None, bool] = {
    None: True,
    "https://console.example": True,
    "HTTPS://Console.Example": True,
    "http://localhost:3113": True,
    "": False,
    "null": False,
    "http://localhost": False,
    "http://localhost:49134": False,
    "http://127.0.0.1:49134": False,
    "https://evil.example": False,
    "https://console.example.evil.example": False,
    "http://console.example": False,
    "https://console.example:8443": False,
    "https://console.example/": False,
    "file://": False,
    "chrome-extension://abc": False,
}
PATHS: dict[tuple[str, str], int | None] = {
    ("/", ""): None,
    ("/", "token=x"): None,
    ("/otel", ""): None,
    ("/ws/channels/id", "key=k&dir=read"): None,
    ("/ws/channels/id", "dir=write&key=a%20b&extra=1"): None,
    ("/ws/channels/id", ""): 400,
    ("/ws/channels/id", "key=k"): 400,
    ("/ws/channels/id", "dir=read"): 400,
    ("/ws/channels/id", "key=&dir=read"): 400,
    ("/ws/channels/id", "key=k&dir=both"): 400,
    ("/ws/channels/id", "key=k&key=l&dir=read"): 400,
    ("/ws/channels/id", "key=k&dir=read&dir=write"): 400,
    ("/ws/channels/id", "key=k&dir=read&x=" + "x" * 5000): 400,
    ("/ws/channels/id", "&".join(["key=k", "dir=read", *["a=1"] * 99])): None,
    ("/ws/channels/", "key=k&dir=read"): 404,
    ("/ws/channels", "key=k&dir=read"): 404,
    ("/otel/", ""): 404,
    ("//", ""): 404,
    ("", ""): 404,
    ("/index.html", ""): 404,
    ("/../", ""): 404,
}


def request(host: str | None, origin: str | None, path: tuple[str, str] = ("/", "")) -> ConnectionRequest:
    headers = [("host", host), ("user-agent", "x"), ("origin", origin)]
    given = tuple((name, value) for name, value in headers if value is not None)
    return ConnectionRequest(path=path[0], query=path[1], headers=given, remote="127.0.0.1")


def verdict(rules: AdmissionRules, given: ConnectionRequest) -> int | None:
    rejection = admit(rules, given)
    return rejection.status if rejection else None


def test_every_combination() -> None:
    combinations = list(itertools.product(HOSTS, ORIGINS, PATHS))
    assert len(combinations) > 10_000
    for host, origin, path in combinations:
        expected = PATHS[path] if HOSTS[host] and ORIGINS[origin] else 403
        assert verdict(RULES, request(host, origin, path)) == expected, (host, origin, path)


def test_by_default_loopback_without_an_origin_alone() -> None:
    rules = AdmissionRules()
    assert verdict(rules, request("127.0.0.1:49134", None)) is None
    assert verdict(rules, request("localhost", "https://console.example")) == 403
    assert verdict(rules, request("iii.example", None)) == 403


@pytest.mark.parametrize("bound", ["0.0.0.0", "::"])
def test_a_listener_for_everybody_still_wants_a_known_host(bound: str) -> None:
    rules = AdmissionRules(bound_host=bound)
    for host in ("0.0.0.0", "[::]", "192.0.2.7", "evil.example"):
        assert verdict(rules, request(host, None)) == 403
    assert verdict(rules, request("127.0.0.1", None)) is None


def test_a_listener_on_an_ipv6_address() -> None:
    rules = AdmissionRules(bound_host="2001:db8::1")
    assert verdict(rules, request("[2001:DB8:0::1]:49134", None)) is None
    assert verdict(rules, request("[2001:db8::2]", None)) == 403


def test_any_and_the_opaque_origin_must_be_named() -> None:
    assert verdict(AdmissionRules(allowed_origins=("*",)), request("localhost", "https://evil.example")) is None
    assert verdict(AdmissionRules(allowed_origins=("null",)), request("localhost", "null")) is None


@pytest.mark.parametrize("name", ["host", "origin"])
def test_a_repeated_header_is_refused(name: str) -> None:
    headers = (("host", "localhost"), ("origin", "https://console.example"))
    doubled = ConnectionRequest(path="/", headers=(*headers, (name, dict(headers)[name])))
    assert verdict(RULES, ConnectionRequest(path="/", headers=headers)) is None
    assert verdict(RULES, doubled) == 403


def test_refusals_tell_nothing_of_the_rules() -> None:
    for given in (request("evil.example", None), request("localhost", "https://evil.example")):
        rejection = admit(RULES, given)
        assert rejection is not None
        assert "console.example" not in rejection.body
        assert "iii.example" not in rejection.body


@pytest.mark.parametrize(
    "text", ["a" * 100_000, "[" * 1000, ":" * 1000, "localhost:" + "9" * 5000, "\x00", "é.example"]
)
def test_hostile_hosts_are_parsed_without_an_error(text: str) -> None:
    host_name(text)
    assert verdict(RULES, request(text, None)) == 403
