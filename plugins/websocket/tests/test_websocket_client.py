"""Dialling: what the caller learns when there is no engine at the other end, or a hostile one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from wsproto.utilities import generate_accept_token

from iii_core.errors import EngineError, EngineNotRunning, UsageError
from iii_core.transport.port import Limits, Message

from .conftest import open_websocket
from .websocket_wire import CLOSE, TEXT, frame

LIMITS = Limits(max_message=1000, handshake_timeout=20, close_timeout=0.3)
HASTY = replace(LIMITS, handshake_timeout=0.5)


@asynccontextmanager
async def open_tcp(handler: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncGenerator[str, None]:
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, handler, [listener])
        yield f"ws://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def accept(stream: trio.SocketStream) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        head += await stream.receive_some()
    key = head.split(b"Sec-WebSocket-Key: ")[1].split(b"\r\n")[0]
    await stream.send_all(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
        + generate_accept_token(key)
    )


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nnope", EngineError, "HTTP 403: nope"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", EngineError, "HTTP 200"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", EngineError, "refused"),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            EngineError,
            "refused",
        ),
        (b"", EngineError, "ended during the handshake"),
        (None, EngineNotRunning, "did not answer within 0.5 s"),
    ],
)
async def test_what_answers_is_no_engine(answer: bytes | None, kind: type[EngineError], text: str) -> None:
    async def handler(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        if answer is None:
            await trio.sleep_forever()
        else:
            await stream.send_all(answer)
        await stream.aclose()

    async with open_tcp(handler) as url, open_websocket() as transport:
        with pytest.raises(kind) as caught:
            await transport.connect(url, limits=LIMITS if answer is not None else HASTY)
        assert text in str(caught.value)
        assert url in str(caught.value)
        assert caught.value.hint


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1", "ws://", "ws://127.0.0.1:0", "ws://h:99999", "127.0.0.1:1", "ws://[::1"]
)
async def test_what_is_no_url(url: str) -> None:
    async with open_websocket() as transport:
        with pytest.raises(UsageError):
            await transport.connect(url)


async def test_headers_that_cannot_be_sent_are_not_in_the_error() -> None:
    async with open_websocket() as transport:
        with pytest.raises(UsageError) as caught:
            await transport.connect("ws://127.0.0.1:1", headers={"Authorization": "Bearer \N{SNOWMAN}secret"})
    assert "secret" not in str(caught.value)


async def test_tls_to_a_port_that_speaks_none() -> None:
    async def handler(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await stream.aclose()

    async with open_tcp(handler) as url, open_websocket() as transport:
        with pytest.raises(EngineError, match="TLS"):
            await transport.connect(url.replace("ws:", "wss:"), limits=LIMITS)


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 4])
async def test_the_first_message_may_come_with_the_answer(cut: int) -> None:
    async def handler(stream: trio.SocketStream) -> None:
        await accept(stream)
        rest = b"\r\n\r\n" + frame(TEXT, b"first", masked=False) + frame(CLOSE, b"\x03\xe8", masked=False)
        if cut:
            await stream.send_all(rest[:cut])
            await trio.sleep(0.02)
        await stream.send_all(rest[cut:])
        await stream.receive_some()
        await stream.aclose()

    async with open_tcp(handler) as url, open_websocket() as transport:
        peer = await transport.connect(url, limits=LIMITS)
        assert await peer.receive() == Message(data=b"first")
        with pytest.raises(trio.EndOfChannel):
            await peer.receive()


@pytest.mark.parametrize(
    "bad", [frame(TEXT, b"x" * 1001, masked=False), frame(TEXT, b"masked"), frame(TEXT, b"\xff", masked=False)]
)
async def test_a_server_that_breaks_the_rules(bad: bytes) -> None:
    async def handler(stream: trio.SocketStream) -> None:
        await accept(stream)
        await stream.send_all(b"\r\n\r\n" + bad)
        await trio.sleep_forever()

    async with open_tcp(handler) as url, open_websocket() as transport:
        with trio.fail_after(30), pytest.raises((trio.BrokenResourceError, EngineError)):
            # What breaks the rules may come with the 101, and then there never was a connection.
            await (await transport.connect(url, limits=LIMITS)).receive()
