"""A listener's side of TLS: from files to a context that transports use."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final

from iii_core.errors import TlsError

if TYPE_CHECKING:
    from pathlib import Path

    from iii_core.engine.config import TlsFiles

ALPN: Final = ["http/1.1"]
"""WebSocket here is RFC 6455, never the one over HTTP/2 (RFC 8441)."""


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """The context of a listener: TLS 1.2 or newer, Python's choice of ciphers (``ssl.create_default_context``).

    Reads the files: a few kilobytes. Clients are not asked for certificates.

    Raises:
        TlsError: a file cannot be read, is not what it should be, is encrypted, or the two do not belong together.
    """
    for path in (files.cert, files.key):
        _check_readable(path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(ALPN)
    try:
        context.load_cert_chain(files.cert, files.key, password=_refuse_password)
    except ssl.SSLError as error:
        mismatch = error.reason == "KEY_VALUES_MISMATCH"
        what = "they do not belong together" if mismatch else error.reason or "not PEM files of a certificate and a key"
        raise TlsError(
            f"cannot use the certificate {files.cert} with the key {files.key}: {what}",
            hint="`tls: cert:` is a PEM chain with the listener's own certificate first, `key:` its private key",
            details={"cert": str(files.cert), "key": str(files.key)},
        ) from error
    return context


def _check_readable(path: Path) -> None:
    """OpenSSL does not say which of two files it could not read."""
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise TlsError(
            f"cannot read {path} for TLS: {error.strerror}",
            hint="`tls: cert:` and `key:` are paths of PEM files, relative to the folder of config.yaml",
            details={"path": str(path)},
        ) from error


def _refuse_password() -> str:
    raise TlsError(
        "the key for TLS is encrypted, and there is nobody to ask for its password",
        hint="decrypt it with `openssl pkey`, and keep the file readable for this user alone",
    )
