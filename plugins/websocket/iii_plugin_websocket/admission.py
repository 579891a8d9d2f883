"""How many connections may be open, and how many may be half open."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import trio

from iii_plugin_websocket.handshake import HandshakeRefused


class Admission:
    """Counts the connections of one transport.

    A handshake of an honest client takes milliseconds, so when too many are pending, the oldest is the one to drop: a
    client that opens sockets and says nothing cannot keep others out.

    Args:
        max_connections: of those whose handshake is done.
        max_pending: of those whose handshake is not.
    """

    def __init__(self, *, max_connections: int, max_pending: int) -> None:
        self._max_connections = max_connections
        self._max_pending = max_pending
        self._open = 0
        self._pending: dict[trio.CancelScope, None] = {}

    @contextmanager
    def handshake(self, timeout: float) -> Generator[trio.CancelScope]:
        """The time of one handshake: cancelled after ``timeout`` seconds, or when it is the oldest of too many."""
        with trio.move_on_after(timeout) as scope:
            self._pending[scope] = None
            if len(self._pending) > self._max_pending:
                oldest = next(iter(self._pending))
                oldest.cancel()
                del self._pending[oldest]
            try:
                yield scope
            finally:
                self._pending.pop(scope, None)

    @contextmanager
    def connection(self) -> Generator[None]:
        """The life of one connection. Raises `HandshakeRefused` (503) when there are too many."""
        if self._open >= self._max_connections:
            raise HandshakeRefused(503, f"this engine has {self._open} connections open and takes no more")
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
