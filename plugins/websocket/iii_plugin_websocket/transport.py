"""The transport: listeners, tunnelled streams and the client, all on trio-websocket.

What trio-websocket costs here: two tasks per connection, one decoding and one encoding of every text (it deals in
``str``), and masks undone in Python; about 3 500 routed calls per second on one core. What it gives is a tested state
machine of RFC 6455 over any trio stream. Its message queue holds one message and its reader waits for room, so a peer
that is not read is pushed back by TCP; its pings, too, then wait for an answer.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

import trio

from iii_core.errors import AddressInUse, EngineError, EngineNotRunning
from iii_core.link.accept import Acceptor
from iii_core.records import OpenContext
from iii_core.transport.port import ConnectionRequest, Limits, ListenAddress, Listener, MessageTransport, Peer
from iii_plugin_websocket.admission import Admission
from iii_plugin_websocket.client import dial, encode_headers, opener, split_url
from iii_plugin_websocket.guard import FrameGuard
from iii_plugin_websocket.plugin import Settings
from iii_plugin_websocket.protocol import HandshakeFailed, run_protocol
from iii_plugin_websocket.server import serve_connection
from iii_plugin_websocket.stream import GuardedStream

_BIND_ATTEMPTS = 8


@asynccontextmanager
async def open_transport(settings: Settings, context: OpenContext) -> AsyncGenerator[MessageTransport]:
    """The transport; on the way out, connections that it dialled are dropped."""
    del context
    async with trio.open_nursery() as nursery:
        yield WebSocketTransport(settings, nursery)
        nursery.cancel_scope.cancel()


class WebSocketTransport(MessageTransport):
    """See `MessageTransport`. ``clients`` runs the readers of dialled connections."""

    def __init__(self, settings: Settings, clients: trio.Nursery) -> None:
        self._admission = Admission(
            max_connections=settings.max_connections, max_pending=settings.max_pending_handshakes
        )
        self._clients = clients
        self._turns: WeakValueDictionary[str, trio.StrictFIFOLock] = WeakValueDictionary()
        self._ca_file = settings.ca_file

    async def listen(
        self,
        address: ListenAddress,
        listener: Listener,
        *,
        task_status: trio.TaskStatus[ListenAddress] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """As `MessageTransport.listen`; a host name that stands for several addresses is served on all of them.

        Raises:
            AddressInUse: another program listens there.
            EngineError: the address cannot be bound for another reason.
        """
        listeners = await _bind(address)
        port = listeners[0].socket.getsockname()[1]
        bound = ListenAddress(host=address.host, port=port, secure=listener.tls is not None)

        async def serve(stream: trio.SocketStream) -> None:
            try:
                remote = str(stream.socket.getpeername()[0])
            except OSError:  # reset before it was accepted
                await trio.aclose_forcefully(stream)
                return
            await self.serve_stream(stream, listener, remote=remote)

        async with trio.open_nursery() as nursery:
            for each in listeners:
                acceptor = Acceptor(each, name=f"listener {bound.host}:{bound.port}")
                nursery.start_soon(acceptor.run, serve, nursery)
            task_status.started(bound)

    async def serve_stream(
        self,
        stream: trio.abc.Stream,
        listener: Listener,
        *,
        remote: str | None = None,
        sandbox: str | None = None,
    ) -> None:
        """As `MessageTransport.serve_stream`; counts against the same caps as accepted connections.

        The connections of one sandbox share the time that the engine gives to one.
        """
        turns = self._turns.setdefault(sandbox, trio.StrictFIFOLock()) if sandbox is not None else None
        await serve_connection(stream, listener, self._admission, remote=remote, sandbox=sandbox, turns=turns)

    async def connect(
        self, url: str, *, headers: Mapping[str, str] | None = None, limits: Limits | None = None
    ) -> Peer:
        """As `MessageTransport.connect`; the connection lives until it is closed or the transport is.

        Raises:
            UsageError: ``url`` is not one of ``ws:`` or ``wss:``.
            EngineNotRunning: nothing answers.
            TlsError: the engine's certificate is not to be trusted.
            EngineError: what answers refuses the connection, or speaks no WebSocket.
        """
        limits = limits or Limits()
        parts = split_url(url)
        fields = encode_headers(headers or {})
        try:
            with trio.fail_after(limits.handshake_timeout):
                stream = GuardedStream(await dial(parts, self._ca_file), FrameGuard(limits.max_message))
                open_connection = opener(stream, parts, fields, limits)
                request = ConnectionRequest(path=parts.path or "/", query=parts.query)
                peer: Peer = await self._clients.start(run_protocol, open_connection, stream, request, limits)
        except trio.TooSlowError:
            raise EngineNotRunning(
                f"{url} did not answer within {limits.handshake_timeout:g} s", hint="check that the engine is not stuck"
            ) from None
        except OSError as error:
            raise EngineNotRunning(
                f"nothing answers at {url}" + (f": {error.strerror}" if error.strerror else ""),
                hint="start the engine with `iii`, or name the right address",
            ) from error
        except HandshakeFailed as failure:
            hint = "the engine's log says why" if failure.status else "is it an iii engine that listens there?"
            raise EngineError(f"{url} refused the connection: {failure}", hint=hint) from failure
        return peer


async def _bind(address: ListenAddress) -> Sequence[trio.SocketListener]:
    """Listeners on every address of the host, on one port. Raises as `WebSocketTransport.listen`."""
    for attempt in range(_BIND_ATTEMPTS):
        try:
            return await _bind_once(address)
        except OSError as error:
            # The port that the system chose for the first address may be taken on the second; then try another.
            if error.errno == errno.EADDRINUSE and address.port == 0 and attempt + 1 < _BIND_ATTEMPTS:
                continue
            raise _bind_error(address, error) from error
    raise AssertionError("unreachable")


async def _bind_once(address: ListenAddress) -> Sequence[trio.SocketListener]:
    found = await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listeners: list[trio.SocketListener] = []
    port = address.port
    try:
        for host in dict.fromkeys(str(entry[4][0]) for entry in found):
            listeners += await trio.open_tcp_listeners(port, host=host)
            port = listeners[0].socket.getsockname()[1]
    except BaseException:
        for listener in listeners:
            listener.socket.close()
        raise
    return listeners


def _bind_error(address: ListenAddress, error: OSError) -> EngineError:
    where = f"{address.host}:{address.port}"
    details = {"host": address.host, "port": address.port}
    if error.errno == errno.EADDRINUSE:
        return AddressInUse(
            f"cannot listen on {where}: the address is in use",
            hint="another engine may be running: end it, or give iii-worker-manager another `port` in config.yaml",
            details=details,
        )
    if error.errno == errno.EACCES:
        hint = "ports below 1024 are for privileged users; choose a higher one"
    else:
        hint = "`host` must be an address of this machine"
    return EngineError(f"cannot listen on {where}: {error.strerror or error}", hint=hint, details=details)
