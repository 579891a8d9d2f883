"""TLS for dialled connections: the handshake, and what a failed one means to people."""

from __future__ import annotations

import ssl
from typing import Final

import trio

from iii_core.errors import TlsError
from iii_plugin_websocket.protocol import HandshakeFailed

_ALPN: Final = ["http/1.1"]


async def secure_client(stream: trio.abc.Stream, host: str, ca_file: str | None) -> trio.abc.Stream:
    """The client's side of a handshake; owns ``stream`` from here on. ``host`` is what the certificate must be for.

    Raises:
        TlsError: the server's certificate is not to be trusted, or ``ca_file`` is of no use.
        HandshakeFailed: what answers speaks no TLS, or none that both sides know.
    """
    try:
        context = _client_context(ca_file)
        secured = trio.SSLStream(stream, context, server_hostname=host, https_compatible=True)
        await secured.do_handshake()
    except trio.BrokenResourceError as error:
        await trio.aclose_forcefully(stream)
        raise _explain(host, error.__cause__ or error) from error
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return secured


def _client_context(ca_file: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # an SSLError is one
        why = "it holds no PEM certificate" if isinstance(error, ssl.SSLError) else error.strerror
        raise TlsError(f"cannot use the authorities in {ca_file}: {why}", hint="`ca_file` is a PEM file") from error
    context.set_alpn_protocols(_ALPN)
    return context


def _explain(host: str, error: BaseException) -> Exception:
    if not isinstance(error, ssl.SSLCertVerificationError):
        return HandshakeFailed(f"TLS: {error}")
    return TlsError(
        f"the certificate of {host} is not to be trusted: {error.verify_message}",
        hint="for a private authority set SSL_CERT_FILE to its PEM file; the certificate must name the host you call",
        details={"host": host},
    )
