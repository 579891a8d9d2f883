"""The server against raw bytes: what must be answered, what must be refused, and that nobody else suffers."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing
from iii_plugin_websocket.plugin import Settings

from iii_core.transport.port import ConnectionRequest, Limits, ListenAddress, Listener, Message, Peer, Rejection, Serve

from .conftest import open_websocket
from .websocket_wire import BINARY, CLOSE, PING, PONG, TEXT, Server, Wire, frame, serve_echo, upgrade_head

LIMIT = 100_000


@asynccontextmanager
async def open_server(settings: Settings | None = None, **limits: float) -> AsyncGenerator[Server, None]:
    def admit(request: ConnectionRequest) -> Rejection | None:
        return Rejection(status=404, body="Channel not found") if request.path == "/missing" else None

    def make_listener(serve: Serve) -> Listener:
        return Listener(
            admit=admit,
            serve=serve,
            limits=Limits(
                max_message=LIMIT,
                handshake_timeout=limits.get("handshake_timeout", 20),
                close_timeout=limits.get("close_timeout", 5),
            ),
        )

    async with open_websocket(settings) as transport, serve_echo(transport, make_listener) as server:
        yield server


@pytest.fixture
async def server() -> AsyncGenerator[Server, None]:
    async with open_server() as server:
        yield server
        await server.assert_alive()


class TestHandshake:
    @pytest.mark.parametrize(
        ("request_head", "status", "text"),
        [
            (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"426", b"Upgrade: websocket"),
            (b"GET / HTTP/1.0\r\n\r\n", b"426", b"WebSocket endpoint"),
            (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", b"405", b"Allow: GET"),
            (upgrade_head("/missing"), b"404", b"Channel not found"),
            (upgrade_head().replace(b": 13", b": 7"), b"426", b"Sec-WebSocket-Version: 13"),
            (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"400", b"malformed"),
            (b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000, b"431", b""),
        ],
    )
    async def test_what_is_no_websocket_gets_an_http_answer(
        self, server: Server, request_head: bytes, status: bytes, text: bytes
    ) -> None:
        async with server.wire() as wire:
            await wire.send(request_head)
            answer = await wire.read_to_end()
        assert answer.startswith(b"HTTP/1.1 " + status)
        assert text in answer
        assert b"\r\nConnection: " in answer

    async def test_no_compression_and_no_subprotocol_is_negotiated(self, server: Server) -> None:
        async with server.wire() as wire:
            head = await wire.upgrade(
                extra="Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
                "Sec-WebSocket-Protocol: chat\r\n"
            )
        assert "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head  # the key's own answer, RFC 6455 §1.3
        assert "extensions" not in head.lower()
        assert "protocol:" not in head.lower()
        assert await server.outcomes.receive() == "broken"

    async def test_headers_that_are_not_ascii_hurt_nobody(self, server: Server) -> None:
        async with server.wire() as wire:
            await wire.send(
                upgrade_head().replace(b"localhost", "bücher".encode()).replace(b"13\r\n", b"13\r\nX: \xff\r\n")
            )
            assert (await wire.read(12)) == b"HTTP/1.1 101"
        assert await server.outcomes.receive() == "broken"

    async def test_frames_that_come_with_the_handshake_are_not_lost(self, server: Server) -> None:
        async with server.wire() as wire:
            await wire.upgrade(behind=frame(TEXT, b"early"))
            assert await wire.read_frame() == (TEXT, b"early")
        assert await server.outcomes.receive() == "broken"

    async def test_a_client_that_leaves_during_the_handshake(self, server: Server) -> None:
        for sent in (b"", b"GET / HT", upgrade_head()[:-2]):
            async with server.wire() as wire:
                await wire.send(sent)

    async def test_a_slow_handshake_is_dropped(self) -> None:
        async with open_server(handshake_timeout=1) as server, server.wire() as wire:
            await wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n")
            with trio.fail_after(15):
                assert await wire.read_to_end() == b""
            await server.assert_alive()

    async def test_the_oldest_of_too_many_handshakes_is_dropped(self) -> None:
        settings = Settings(max_pending_handshakes=2)
        async with open_server(settings) as server, server.wire() as first, server.wire() as second:
            for wire in (first, second):
                await wire.send(b"GET / HT")
            await trio.testing.wait_all_tasks_blocked(0.05)
            await server.assert_alive()
            assert await first.read_to_end() == b""
            await second.send(upgrade_head()[len("GET / HT") :])
            assert await second.read(12) == b"HTTP/1.1 101"

    async def test_too_many_connections_get_503(self) -> None:
        async with open_server(Settings(max_connections=1)) as server:
            async with server.wire() as first:
                await first.upgrade()
                async with server.wire() as second:
                    await second.send(upgrade_head())
                    assert (await second.read_to_end()).startswith(b"HTTP/1.1 503")
            assert await server.outcomes.receive() == "broken"
            await server.assert_alive()


class TestFrames:
    async def echo(self, wire: Wire, opcode: int, payload: bytes) -> None:
        assert await wire.read_frame() == (opcode, payload)

    async def test_fragmented_messages_with_pings_between(self, server: Server) -> None:
        text = "grüße".encode()
        async with server.wire() as wire:
            await wire.upgrade()
            await wire.send(frame(TEXT, text[:3], fin=False))  # cut inside a character
            await wire.send(frame(PING, b"are you there"))
            assert await wire.read_frame() == (PONG, b"are you there")
            await wire.send(frame(0, text[3:], fin=False) + frame(0, b""))
            await self.echo(wire, TEXT, text)
        assert await server.outcomes.receive() == "broken"

    async def test_a_message_is_answered_in_one_frame(self, server: Server) -> None:
        payload = b"x" * LIMIT
        async with server.wire() as wire:
            await wire.upgrade()
            await wire.send(frame(BINARY, payload))
            await self.echo(wire, BINARY, payload)
        assert await server.outcomes.receive() == "broken"

    @pytest.mark.parametrize(
        "bad",
        [
            pytest.param(frame(TEXT, b"hello", masked=False), id="unmasked"),
            pytest.param(frame(TEXT, b"\xff\xfe"), id="not-utf8"),
            pytest.param(frame(TEXT, b"\xed\xa0\x80"), id="surrogate"),
            pytest.param(frame(TEXT, "ü".encode()[:1]), id="cut-character"),
            pytest.param(frame(TEXT, b"\xc3", fin=False) + frame(0, b"\x28"), id="not-utf8-over-fragments"),
            pytest.param(frame(TEXT, b"x", rsv=0x40), id="compressed"),
            pytest.param(frame(3, b"x"), id="unknown-opcode"),
            pytest.param(frame(0, b"x"), id="continuation-of-nothing"),
            pytest.param(frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"), id="message-in-message"),
            pytest.param(frame(PING, b"x" * 126), id="long-ping"),
            pytest.param(frame(PING, b"x", fin=False), id="fragmented-ping"),
            pytest.param(b"\x82\xff" + (2**62).to_bytes(8, "big") + b"0000", id="oversized-by-header"),
            pytest.param(frame(TEXT, b"x" * LIMIT, fin=False) + frame(0, b"x"), id="oversized-by-fragments"),
            pytest.param(frame(TEXT, "é".encode() * (LIMIT // 2) + b"x"), id="oversized-in-bytes-not-characters"),
        ],
    )
    async def test_what_breaks_the_protocol_ends_the_connection(self, server: Server, bad: bytes) -> None:
        async with server.wire() as wire:
            await wire.upgrade()
            with suppress(trio.BrokenResourceError):  # refused before all of it was sent
                await wire.send(bad)
            await wire.read_to_end()
        assert await server.outcomes.receive() == "broken"

    async def test_an_oversized_frame_is_refused_before_it_is_sent(self, server: Server) -> None:
        async with server.wire() as wire:
            await wire.upgrade()
            await wire.send(b"\x82\xff" + (LIMIT + 1).to_bytes(8, "big") + b"0000")
            with trio.fail_after(15):
                assert await wire.read_to_end() == b""
        assert await server.outcomes.receive() == "broken"

    async def test_pings_in_a_row(self, server: Server) -> None:
        async with server.wire() as wire:
            await wire.upgrade()
            for number in range(50):
                await wire.send(frame(PING, b"%d" % number))
                assert await wire.read_frame() == (PONG, b"%d" % number)
        assert await server.outcomes.receive() == "broken"


class TestEnds:
    async def pair(self, server: Server, wire: Wire) -> Peer:
        await wire.upgrade()
        await wire.send(frame(TEXT, b"hello"))
        assert await wire.read_frame() == (TEXT, b"hello")
        return server.peers[-1]

    @pytest.mark.parametrize(
        ("code", "reason", "payload"),
        [
            (1000, "", b"\x03\xe8"),
            (1008, "no", b"\x03\xf0no"),
            (4001, "ü" * 200, b"\x0f\xa1" + "ü".encode() * 61),
            (1005, "", b""),
        ],
    )
    async def test_close_frames(self, server: Server, code: int, reason: str, payload: bytes) -> None:
        async with server.wire() as wire:
            peer = await self.pair(server, wire)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(peer.close, code, reason)
                assert await wire.read_frame() == (CLOSE, payload)
                await wire.send(frame(CLOSE, payload))
                assert await wire.read_to_end() == b""
        await server.outcomes.receive()

    async def test_a_ping_that_crosses_the_close_frame_ends_nothing_else(self, server: Server) -> None:
        async with server.wire() as wire:
            peer = await self.pair(server, wire)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(peer.close)
                assert (await wire.read_frame())[0] == CLOSE
                await wire.send(frame(PING))  # wsproto raises when it is to answer
                assert await wire.read_to_end() == b""
        assert await server.outcomes.receive() == "broken"

    async def test_a_close_without_an_answer_ends_in_time(self) -> None:
        async with open_server(close_timeout=0.3) as server, server.wire() as wire:
            peer = await self.pair(server, wire)
            with trio.fail_after(15):
                await peer.close()
            assert (await wire.read_to_end())[0] == 0x80 | CLOSE
            assert await server.outcomes.receive() == "broken"

    async def test_abort_is_a_reset_without_a_close_frame_even_with_unsent_data(self, server: Server) -> None:
        async with server.wire() as wire:
            assert isinstance(wire.stream, trio.SocketStream)
            wire.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            peer = await self.pair(server, wire)
            async with trio.open_nursery() as nursery:

                async def send() -> None:
                    with pytest.raises(trio.BrokenResourceError):
                        await peer.send(Message(data=bytes(32 * 1024 * 1024), text=False))

                nursery.start_soon(send)
                await trio.testing.wait_all_tasks_blocked(0.05)
                peer.abort()
            with pytest.raises(trio.BrokenResourceError) as caught:
                await wire.read_to_reset()
            assert isinstance(caught.value.__cause__, ConnectionResetError)
        assert await server.outcomes.receive() == "broken"

    async def test_a_listener_for_all_addresses_of_a_name_has_one_port(self) -> None:
        async with open_websocket() as transport, trio.open_nursery() as nursery:

            async def serve(peer: Peer) -> None:
                await peer.close()

            bound = await nursery.start(
                transport.listen,
                ListenAddress(host="localhost", port=0),
                Listener(admit=lambda _: None, serve=serve),
            )
            found = await trio.socket.getaddrinfo("localhost", bound.port, type=socket.SOCK_STREAM)
            for host in {entry[4][0] for entry in found}:
                await (await trio.open_tcp_stream(str(host), bound.port)).aclose()
            nursery.cancel_scope.cancel()
