"""The server's half of the opening handshake (RFC 6455 §4.2), as pure functions of bytes.

trio-websocket parses a handshake by itself, but its public API hides the ``Host`` header (which the core needs to
refuse DNS rebinding), never tells its caller about a handshake that failed, and lets a header that is not ASCII end its
reader with a ``UnicodeDecodeError``. So a request is read and judged here, with h11, and trio-websocket then sees
`canonical_head`: a request of our own making, with the client's key in it.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

import h11

MAX_HEAD = 16 * 1024

_UPGRADE_HEADERS = (("Upgrade", "websocket"), ("Connection", "Upgrade"))
_VERSION_HEADER = ("Sec-WebSocket-Version", "13")


class HandshakeRefused(Exception):
    """The request cannot become a WebSocket; ``status``, ``body`` and ``headers`` make the HTTP answer."""

    def __init__(self, status: int, body: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(f"HTTP {status}: {body}")
        self.status = status
        self.body = body
        self.headers = headers


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgrade:
    """A well-formed opening handshake.

    Attributes:
        path: such as ``/``.
        query: without ``?``.
        headers: lower-case names in order of arrival; values decoded as Latin-1 (RFC 9110 §5.5).
        key: the value of ``Sec-WebSocket-Key``.
        trailing: bytes that came behind the request head.
    """

    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    key: str
    trailing: bytes


class OpeningHandshake:
    """Parses one request head, fed in pieces, and renders the HTTP answer where there is to be no WebSocket."""

    def __init__(self) -> None:
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)

    def receive(self, data: bytes) -> Upgrade | None:
        """Feed bytes; gives the request once its head is complete. ``b""`` says that the client is gone.

        Raises:
            HandshakeRefused: the bytes are not a request for a WebSocket.
        """
        try:
            self._http.receive_data(data)
            event = self._http.next_event()
            if not isinstance(event, h11.Request):
                return None
            upgrade = _judge(event)
            if not isinstance(self._http.next_event(), h11.EndOfMessage):
                raise HandshakeRefused(400, "a WebSocket handshake has no body")
        except h11.RemoteProtocolError as error:
            raise HandshakeRefused(error.error_status_hint, f"malformed HTTP request: {error}") from None
        return Upgrade(
            path=upgrade.path,
            query=upgrade.query,
            headers=upgrade.headers,
            key=upgrade.key,
            trailing=self._http.trailing_data[0],
        )

    def refuse(self, status: int, body: str, headers: tuple[tuple[str, str], ...] = ()) -> bytes:
        """The whole HTTP answer, ``Connection: close`` included."""
        payload = (body + "\n").encode() if body else b""
        fields = [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(payload))),
            ("X-Content-Type-Options", "nosniff"),
            *headers,
        ]
        if not any(name == "Connection" for name, _ in headers):
            fields.append(("Connection", "close"))
        answer = self._http.send(h11.Response(status_code=status, headers=fields)) or b""
        return answer + (self._http.send(h11.Data(data=payload)) or b"") + (self._http.send(h11.EndOfMessage()) or b"")


def canonical_head(upgrade: Upgrade) -> bytes:
    """The request that trio-websocket is given to read: no header of the client but its (checked) key."""
    lines = [
        "GET / HTTP/1.1",
        "Host: localhost",
        *(f"{name}: {value}" for name, value in (*_UPGRADE_HEADERS, _VERSION_HEADER)),
        f"Sec-WebSocket-Key: {upgrade.key}",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def _judge(request: h11.Request) -> Upgrade:
    """Check a request against RFC 6455 §4.2.1. Raises `HandshakeRefused`."""
    headers = tuple((name.decode("ascii"), value.decode("latin-1")) for name, value in request.headers)
    if request.method != b"GET":
        raise HandshakeRefused(405, "only GET is known here", (("Allow", "GET"),))
    if "websocket" not in _tokens(headers, "upgrade") or "upgrade" not in _tokens(headers, "connection"):
        raise HandshakeRefused(426, "this is a WebSocket endpoint of an iii engine", _UPGRADE_HEADERS)
    if request.http_version < b"1.1":
        raise HandshakeRefused(400, "a WebSocket handshake needs HTTP/1.1")
    if _single(headers, "sec-websocket-version") != "13":
        raise HandshakeRefused(426, "the WebSocket version must be 13", (*_UPGRADE_HEADERS, _VERSION_HEADER))
    target = request.target.decode("ascii")
    if not target.startswith("/"):
        raise HandshakeRefused(400, "the request target must be a path")
    path, _, query = target.partition("?")
    return Upgrade(path=path, query=query, headers=headers, key=_key(headers), trailing=b"")


def _key(headers: tuple[tuple[str, str], ...]) -> str:
    key = _single(headers, "sec-websocket-key")
    try:
        well_formed = len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        well_formed = False
    if not well_formed:
        raise HandshakeRefused(400, "Sec-WebSocket-Key must be 16 bytes in base64, given once")
    return key


def _single(headers: tuple[tuple[str, str], ...], name: str) -> str:
    """The value of a header that must occur once; an empty string where it doesn't."""
    values = [value.strip() for key, value in headers if key == name]
    return values[0] if len(values) == 1 else ""


def _tokens(headers: tuple[tuple[str, str], ...], name: str) -> set[str]:
    values = [value for key, value in headers if key == name]
    return {token.strip().lower() for value in values for token in value.split(",")}
