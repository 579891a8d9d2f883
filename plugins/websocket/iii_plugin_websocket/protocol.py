"""The task that runs trio-websocket's reader for one connection, on either side."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import trio
from trio_websocket import ConnectionRejected, WebSocketConnection

from iii_core.transport.port import ConnectionRequest, Limits
from iii_plugin_websocket.peer import WebSocketPeer
from iii_plugin_websocket.stream import GuardedStream

OpenConnection: TypeAlias = Callable[[trio.Nursery], Awaitable[WebSocketConnection]]

logger = logging.getLogger("iii.websocket")


class HandshakeFailed(Exception):
    """There is no connection. ``status`` is the peer's HTTP status, if it gave one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


async def run_protocol(
    open_connection: OpenConnection,
    stream: GuardedStream,
    request: ConnectionRequest,
    limits: Limits,
    *,
    task_status: trio.TaskStatus[WebSocketPeer],
) -> None:
    """Open a connection and read it until it ends, ``stream`` with it; ``started`` gives the peer.

    trio-websocket's reader lives in a nursery of its own, so that whatever it raises (wsproto's ``LocalProtocolError``
    for a ping that crosses our close frame, for one) ends this connection and nothing else.

    Raises:
        HandshakeFailed: before ``started`` only.
    """
    reader_done = trio.Event()
    opened = False
    failure: ExceptionGroup[Exception] | None = None
    try:
        async with trio.open_nursery() as nursery:
            with stream.until_end:
                connection = await open_connection(nursery)
                opened = True
                peer = WebSocketPeer(
                    connection, stream, request, limits, reader=nursery.cancel_scope, reader_done=reader_done
                )
                task_status.started(peer)
            if not opened:
                raise HandshakeFailed("the connection ended during the handshake")
    except* Exception as group:
        failure = group  # raised below: what is raised in here, Python before 3.11.4 wraps into a group
    finally:
        reader_done.set()
        stream.drop()
        await trio.aclose_forcefully(stream)
    if failure is not None:
        if not opened:
            raise _explain(failure) from failure
        logger.debug("a connection ended with %r", failure.exceptions)


def _explain(group: ExceptionGroup[Exception]) -> HandshakeFailed:
    """The one failure that says most."""
    for kind in (ConnectionRejected, HandshakeFailed, Exception):
        error: BaseException | None = group.subgroup(kind)
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, ConnectionRejected):
            body = (error.body or b"").decode(errors="replace").strip()
            return HandshakeFailed(f"HTTP {error.status_code}" + (f": {body[:200]}" if body else ""), error.status_code)
        if error is not None:
            return error if isinstance(error, HandshakeFailed) else HandshakeFailed(str(error))
    raise AssertionError("an exception group is never empty")
