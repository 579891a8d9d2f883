"""TLS: who is trusted, what the caller learns when nobody is, and that a bad handshake hurts nobody else."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from iii_plugin_websocket.plugin import Settings

from iii_core.engine.config import TlsFiles
from iii_core.engine.tls import server_context
from iii_core.errors import EngineError, EngineNotRunning, TlsError
from iii_core.transport.port import Limits, Listener, Message, Serve
from iiitools.certificates import Authority, Certificate

from .conftest import open_websocket
from .websocket_wire import TEXT, Server, frame, serve_echo, upgrade_head

LIMITS = Limits(max_message=100_000, handshake_timeout=10, close_timeout=5)
HASTY = replace(LIMITS, handshake_timeout=2)


@asynccontextmanager
async def open_server(certificate: Certificate, limits: Limits = LIMITS) -> AsyncGenerator[Server]:
    context = server_context(TlsFiles(cert=certificate.cert, key=certificate.key))

    def make_listener(serve: Serve) -> Listener:
        return Listener(admit=lambda _: None, serve=serve, limits=limits, tls=context)

    async with open_websocket() as transport, serve_echo(transport, make_listener) as server:
        assert server.address.secure
        yield server


async def echo(server: Server, host: str, ca_file: Path | None) -> None:
    """One message there and back."""
    async with open_websocket(Settings(ca_file=str(ca_file) if ca_file else None)) as transport:
        peer = await transport.connect(f"wss://{host}:{server.address.port}/", limits=LIMITS)
        await peer.send(Message(data=b"x" * 70_000))
        assert await peer.receive() == Message(data=b"x" * 70_000)
        await peer.close()
    assert await server.outcomes.receive() == "end"


async def refusal(server: Server, ca_file: Path) -> TlsError:
    """What a client learns that must not connect."""
    async with open_websocket(Settings(ca_file=str(ca_file))) as transport:
        with pytest.raises(TlsError) as caught:
            await transport.connect(f"wss://127.0.0.1:{server.address.port}/", limits=LIMITS)
    assert not server.peers
    return caught.value


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_name_and_an_address_of_the_certificate(
    authority: Authority, certificate: Certificate, host: str
) -> None:
    async with open_server(certificate) as server:
        await echo(server, host, authority.path)


async def test_authorities_of_the_environment_are_trusted(
    authority: Authority, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    async with open_server(certificate) as server:
        await echo(server, "127.0.0.1", None)


@pytest.mark.parametrize(
    ("issue", "trusted", "text"),
    [
        pytest.param(lambda authority: authority.issue("IP:127.0.0.1"), False, "to get local issuer", id="stranger"),
        pytest.param(lambda authority: authority.issue("DNS:other.example"), True, "mismatch", id="other-name"),
        pytest.param(lambda authority: authority.issue("IP:127.0.0.1", days=-1), True, "expired", id="expired"),
    ],
)
async def test_who_is_not_to_be_trusted(
    authority: Authority, tmp_path: Path, issue: Callable[[Authority], Certificate], trusted: bool, text: str
) -> None:
    stranger = Authority(tmp_path, "somebody else")
    async with open_server(issue(authority)) as server:
        error = await refusal(server, authority.path if trusted else stranger.path)
    assert error.code == "W205"
    assert text in str(error)
    assert "127.0.0.1" in str(error)
    assert "SSL_CERT_FILE" in (error.hint or "")


@pytest.mark.parametrize(
    ("content", "text"), [(None, "ca.pem: No such file or directory"), ("nothing", "ca.pem: it holds no PEM")]
)
async def test_a_ca_file_of_no_use(certificate: Certificate, tmp_path: Path, content: str | None, text: str) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    async with open_server(certificate) as server:
        assert text in str(await refusal(server, path))


async def test_a_client_without_tls_is_refused_and_hurts_nobody(authority: Authority, certificate: Certificate) -> None:
    async with open_server(certificate) as server:
        async with server.wire() as wire:
            await wire.send(upgrade_head())
            with trio.fail_after(15):
                assert not (await wire.read_to_end()).startswith(b"HTTP")
        async with open_websocket() as transport:
            with pytest.raises((EngineError, EngineNotRunning)) as caught:
                await transport.connect(f"ws://127.0.0.1:{server.address.port}/", limits=LIMITS)
            assert caught.value.hint
        await echo(server, "127.0.0.1", authority.path)


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01", b"\x16\x03\x01\xff\xff" + bytes(70_000)])
async def test_a_handshake_that_never_ends_is_dropped_in_time(
    authority: Authority, certificate: Certificate, sent: bytes
) -> None:
    async with open_server(certificate, HASTY) as server:
        async with server.wire() as wire:
            with suppress(trio.BrokenResourceError):  # refused before all of it was sent
                await wire.send(sent)
            with trio.fail_after(15):
                await wire.read_to_end()
        await echo(server, "127.0.0.1", authority.path)


async def test_old_tls_is_refused(authority: Authority, certificate: Certificate) -> None:
    context = ssl.create_default_context(cafile=str(authority.path))
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    async with open_server(certificate) as server:
        async with await trio.open_tcp_stream("127.0.0.1", server.address.port) as stream:
            secured = trio.SSLStream(stream, context, server_hostname="127.0.0.1")
            with pytest.raises(trio.BrokenResourceError):
                await secured.do_handshake()
        await echo(server, "127.0.0.1", authority.path)


async def test_abort_is_a_reset_under_tls_too(authority: Authority, certificate: Certificate) -> None:
    context = ssl.create_default_context(cafile=str(authority.path))
    async with open_server(certificate) as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.address.port)
        secured = trio.SSLStream(stream, context, server_hostname="127.0.0.1", https_compatible=True)
        await secured.send_all(upgrade_head() + frame(TEXT, b"hello"))
        while b"hello" not in await secured.receive_some():
            pass
        server.peers[-1].abort()
        with pytest.raises(trio.BrokenResourceError) as caught:
            await stream.receive_some()
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        await trio.aclose_forcefully(secured)
        assert await server.outcomes.receive() == "broken"


def test_the_context_offers_http_1_alone(certificate: Certificate, authority: Authority) -> None:
    """A client that could do HTTP/2 must not be led to think that we can."""
    server, client = (ssl.MemoryBIO(), ssl.MemoryBIO()), (ssl.MemoryBIO(), ssl.MemoryBIO())
    context = ssl.create_default_context(cafile=str(authority.path))
    context.set_alpn_protocols(["h2", "http/1.1"])
    ours = server_context(TlsFiles(cert=certificate.cert, key=certificate.key)).wrap_bio(*server, server_side=True)
    theirs = context.wrap_bio(*client, server_hostname="localhost")
    for _ in range(4):
        for end in (theirs, ours):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
            server[0].write(client[1].read())
            client[0].write(server[1].read())
    assert theirs.selected_alpn_protocol() == "http/1.1"
