"""Serving one connection, from the first byte to the last."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from functools import partial

import trio
from trio_websocket import WebSocketConnection, wrap_server_stream

from iii_core.transport.port import ConnectionRequest, Limits, Listener
from iii_plugin_websocket.admission import Admission
from iii_plugin_websocket.guard import FrameGuard
from iii_plugin_websocket.handshake import HandshakeRefused, OpeningHandshake, Upgrade, canonical_head
from iii_plugin_websocket.peer import WebSocketPeer
from iii_plugin_websocket.protocol import HandshakeFailed, run_protocol
from iii_plugin_websocket.stream import RECEIVE_SIZE, GuardedStream

logger = logging.getLogger("iii.websocket")

_DRAIN_SIZE = 64 * 1024
_DRAIN_TIME = 1.0


async def serve_connection(
    stream: trio.abc.Stream,
    listener: Listener,
    admission: Admission,
    *,
    remote: str | None,
    sandbox: str | None,
    turns: trio.StrictFIFOLock | None = None,
) -> None:
    """Handshake, ``listener.serve``, end. ``stream`` is closed when this returns; what the peer does raises nothing."""
    if listener.tls is not None:  # the handshake is part of the first read
        stream = trio.SSLStream(stream, listener.tls, server_side=True, https_compatible=True)
    try:
        async with trio.open_nursery() as nursery:
            with ExitStack() as slot:
                peer: WebSocketPeer | None = None
                with admission.handshake(listener.limits.handshake_timeout):
                    asked = await _negotiate(stream, listener, admission, slot, remote=remote, sandbox=sandbox)
                    if asked is not None:
                        peer = await _accept(nursery, stream, *asked, listener.limits, turns)
                if peer is not None:
                    await _serve(peer, listener)
            nursery.cancel_scope.cancel()
    finally:
        await trio.aclose_forcefully(stream)


async def _serve(peer: WebSocketPeer, listener: Listener) -> None:
    try:
        await listener.serve(peer)
        await peer.finish()
    finally:
        peer.abort()


async def _negotiate(
    stream: trio.abc.Stream,
    listener: Listener,
    admission: Admission,
    slot: ExitStack,
    *,
    remote: str | None,
    sandbox: str | None,
) -> tuple[Upgrade, ConnectionRequest] | None:
    """Read and judge the request; where there is to be no connection, answer it and give None."""
    handshake = OpeningHandshake()
    try:
        upgrade = await _read_request(stream, handshake)
        request = ConnectionRequest(
            path=upgrade.path, query=upgrade.query, headers=upgrade.headers, remote=remote, sandbox=sandbox
        )
        rejection = listener.admit(request)
        if rejection is not None:
            raise HandshakeRefused(rejection.status, rejection.body)
        slot.enter_context(admission.connection())
    except HandshakeRefused as refused:
        await _answer(stream, handshake.refuse(refused.status, refused.body, refused.headers))
        return None
    except trio.BrokenResourceError:
        return None
    return upgrade, request


async def _read_request(stream: trio.abc.Stream, handshake: OpeningHandshake) -> Upgrade:
    while True:
        data = bytes(await stream.receive_some(RECEIVE_SIZE))
        upgrade = handshake.receive(data)
        if upgrade is not None:
            return upgrade
        if not data:
            raise trio.BrokenResourceError("the client left during the handshake")


async def _answer(stream: trio.abc.Stream, answer: bytes) -> None:
    """Send the last bytes, then read a while: closing with unread input is a RST, which may overtake the answer."""
    try:
        await stream.send_all(answer)
        if isinstance(stream, trio.abc.HalfCloseableStream):
            await stream.send_eof()
        with trio.move_on_after(_DRAIN_TIME):
            data = await stream.receive_some(_DRAIN_SIZE)
            left = _DRAIN_SIZE - len(data)
            while data and left > 0:
                data = await stream.receive_some(left)
                left -= len(data)
        await stream.aclose()
    except trio.BrokenResourceError:
        return


async def _accept(
    nursery: trio.Nursery,
    stream: trio.abc.Stream,
    upgrade: Upgrade,
    request: ConnectionRequest,
    limits: Limits,
    turns: trio.StrictFIFOLock | None,
) -> WebSocketPeer | None:
    guarded = GuardedStream(
        stream, FrameGuard(limits.max_message), head=canonical_head(upgrade), trailing=upgrade.trailing, turns=turns
    )

    async def open_connection(reader: trio.Nursery) -> WebSocketConnection:
        request = await wrap_server_stream(
            reader, guarded, max_message_size=limits.max_message, receive_buffer_size=RECEIVE_SIZE
        )
        return await request.accept()

    try:
        peer: WebSocketPeer = await nursery.start(partial(run_protocol, open_connection, guarded, request, limits))
    except HandshakeFailed as failure:
        logger.debug("a client left during the handshake: %s", failure)
        return None
    return peer
