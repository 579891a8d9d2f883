"""The client's side: dialling an engine."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

import trio
from trio_websocket import WebSocketConnection, wrap_client_stream

from iii_core.errors import UsageError
from iii_core.transport.port import Limits
from iii_plugin_websocket.protocol import OpenConnection
from iii_plugin_websocket.stream import RECEIVE_SIZE, GuardedStream
from iii_plugin_websocket.tls import secure_client


def opener(
    stream: GuardedStream, parts: SplitResult, headers: list[tuple[bytes, bytes]], limits: Limits
) -> OpenConnection:
    """How `run_protocol` is to ask for ``parts`` over ``stream``."""
    host, port = authority(parts)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    async def open_connection(reader: trio.Nursery) -> WebSocketConnection:
        # Annotated for sockets, but it asks no more of a stream than wrap_server_stream does.
        return await wrap_client_stream(
            reader,
            stream,  # type: ignore[arg-type]
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            target,
            extra_headers=headers,
            max_message_size=limits.max_message,
            receive_buffer_size=RECEIVE_SIZE,
        )

    return open_connection


async def dial(parts: SplitResult, ca_file: str | None) -> trio.abc.Stream:
    """A byte stream to the host of ``parts``. Raises ``OSError``; for ``wss:`` as `secure_client` does too."""
    host, port = authority(parts)
    stream = await trio.open_tcp_stream(host, port)
    return stream if parts.scheme == "ws" else await secure_client(stream, host, ca_file)


def authority(parts: SplitResult) -> tuple[str, int]:
    """Host and port, the scheme's own port where none is given."""
    return parts.hostname or "", parts.port or (443 if parts.scheme == "wss" else 80)


def encode_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Header fields for the wire. Raises ``UsageError`` for what cannot be one; values are not in its text."""
    try:
        return [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()]
    except UnicodeEncodeError:
        raise UsageError("a header has characters outside Latin-1", hint="percent-encode its value") from None


def split_url(url: str) -> SplitResult:
    """The parts of a ``ws:`` or ``wss:`` URL. Raises ``UsageError`` for any other."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("ws", "wss") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port or an IPv6 address that is none
        valid = False
        parts = SplitResult("", "", "", "", "")
    if not valid:
        raise UsageError(f"not a WebSocket URL: {url!r}", hint="write it like ws://127.0.0.1:49134")
    return parts
