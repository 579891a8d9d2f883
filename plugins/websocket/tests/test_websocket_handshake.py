"""The opening handshake as bytes in, verdict out."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st
from iii_plugin_websocket.handshake import MAX_HEAD, HandshakeRefused, OpeningHandshake, Upgrade, canonical_head

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
FIELDS = {
    "Host": "127.0.0.1:49134",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}


def head(
    method: str = "GET",
    target: str = "/",
    version: str = "HTTP/1.1",
    *,
    drop: str | None = None,
    extra: tuple[tuple[str, str], ...] = (),
    **change: str,
) -> bytes:
    changes = {name.replace("_", "-"): value for name, value in change.items()}
    fields = [(name, changes.pop(name, value)) for name, value in FIELDS.items() if name != drop]
    lines = [
        f"{method} {target} {version}",
        *(f"{name}: {value}" for name, value in (*fields, *changes.items(), *extra)),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def feed(handshake: OpeningHandshake, data: bytes) -> None:
    handshake.receive(data)
    handshake.receive(b"")


def judge(data: bytes) -> Upgrade:
    upgrade = OpeningHandshake().receive(data)
    assert upgrade is not None
    return upgrade


def test_the_request_is_given_as_it_came() -> None:
    upgrade = judge(
        head(target="/ws/channels/a%20b?key=1&dir=read", extra=(("X-Twice", "1"), ("X-Twice", "zwölf"))) + b"frames"
    )
    assert (upgrade.path, upgrade.query) == ("/ws/channels/a%20b", "key=1&dir=read")
    assert ("host", "127.0.0.1:49134") in upgrade.headers
    assert [value for name, value in upgrade.headers if name == "x-twice"] == ["1", "zwölf"]
    assert upgrade.trailing == b"frames"


@given(cuts=st.lists(st.integers(1, 30), min_size=1, max_size=9))
def test_it_may_come_in_pieces(cuts: list[int]) -> None:
    data, handshake, position = head(), OpeningHandshake(), 0
    while position < len(data):
        step = cuts[position % len(cuts)]
        upgrade = handshake.receive(data[position : position + step])
        position += step
        assert (upgrade is not None) == (position >= len(data))


@pytest.mark.parametrize(
    "request_head",
    [
        head(Connection="keep-alive, Upgrade", Upgrade="WebSocket"),
        head(extra=(("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"),)),
        head(extra=(("Sec-WebSocket-Protocol", "ümläut"), ("Sec-WebSocket-Extensions", "ä"))),
        head(Host="bücher.example"),
        head(extra=(("Connection", "tëst"),)),
    ],
)
def test_what_is_taken(request_head: bytes) -> None:
    judge(request_head)


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (head(drop="Upgrade"), 426),
        (head(drop="Connection"), 426),
        (head(Upgrade="h2c"), 426),
        (head(Sec_WebSocket_Version="8"), 426),
        (head(drop="Sec-WebSocket-Version"), 426),
        (head(drop="Sec-WebSocket-Key"), 400),
        (head(Sec_WebSocket_Key="short"), 400),
        (head(Sec_WebSocket_Key="ä" * 24), 400),
        (head(extra=(("Sec-WebSocket-Key", KEY),)), 400),
        (head(drop="Host"), 400),
        (head(extra=(("Host", "evil.example"),)), 400),
        (head(version="HTTP/1.0"), 400),
        (head(target="http://evil.example/"), 400),
        (head(extra=(("Content-Length", "5"),)) + b"hello", 400),
        (head(extra=(("Transfer-Encoding", "chunked"),)), 400),
        (head(method="POST"), 405),
        (head(method="OPTIONS"), 405),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"hello\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nBad Name: 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * (MAX_HEAD + 1), 431),
    ],
)
def test_what_is_refused(request_head: bytes, status: int) -> None:
    handshake = OpeningHandshake()
    with pytest.raises(HandshakeRefused) as caught:
        feed(handshake, request_head)
    assert caught.value.status == status
    answer = handshake.refuse(status, caught.value.body, caught.value.headers)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"\r\nContent-Length: " in answer


@given(data=st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    for raw in (data, head()[:40] + data, head()[:-2] + data + b"\r\n\r\n"):
        handshake = OpeningHandshake()
        try:
            feed(handshake, raw)
        except HandshakeRefused as refused:
            handshake.refuse(refused.status, refused.body, refused.headers)


def test_the_canonical_head_holds_nothing_of_the_client_but_its_key() -> None:
    upgrade = judge(head(target="/secret", extra=(("Authorization", "Bearer x"), ("Sec-WebSocket-Extensions", "e"))))
    server = h11.Connection(h11.SERVER)
    server.receive_data(canonical_head(upgrade))
    request = server.next_event()
    assert isinstance(request, h11.Request)
    assert dict(request.headers) == {
        b"host": b"localhost",
        b"upgrade": b"websocket",
        b"connection": b"Upgrade",
        b"sec-websocket-version": b"13",
        b"sec-websocket-key": KEY.encode(),
    }
