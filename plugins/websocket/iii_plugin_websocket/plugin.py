"""iii-plugin-websocket: the hook implementations of this distribution."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Annotated

import msgspec

from iii_core.hookspecs import hookimpl
from iii_core.records import OpenContext, Transport

if TYPE_CHECKING:
    from iii_core.transport.port import MessageTransport


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may be set for the transport.

    Attributes:
        max_connections: open connections of all listeners together; further ones get HTTP 503.
        max_pending_handshakes: connections whose request is not complete; beyond that the oldest is dropped.
        ca_file: PEM certificates of the authorities that ``wss:`` engines are checked against when dialling. By default
            the system's, or those of ``SSL_CERT_FILE`` and ``SSL_CERT_DIR``.
    """

    max_connections: Annotated[int, msgspec.Meta(ge=1)] = 4096
    max_pending_handshakes: Annotated[int, msgspec.Meta(ge=1)] = 128
    ca_file: str | None = None


@hookimpl
def iii_transports() -> Iterable[Transport]:
    """The one transport of this distribution."""
    yield Transport(name="websocket", schemes=("ws", "wss"), config=Settings, open=_open)


def _open(settings: Settings, context: OpenContext) -> AbstractAsyncContextManager[MessageTransport]:
    from iii_plugin_websocket.transport import open_transport

    return open_transport(settings, context)
