"""Accepting connections without ever using up the descriptors of this process.

A program that is out of descriptors (``EMFILE``) can do nothing any more: not even tell its user so. Hence a connection
gets its place before it is accepted, and what strangers may open leaves some descriptors for the program's own work.
"""

from __future__ import annotations

import errno
import logging
import resource
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import trio

_log = logging.getLogger(__name__)

RESERVE: Final = 256
"""Descriptors that connections from outside leave for the control socket, sandboxes and files; a quarter at most."""
BACK_OFF: Final = 0.2
QUIET: Final = 10.0
"""Seconds between two lines in the log about one listener."""
_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

Serve: TypeAlias = Callable[[trio.SocketStream], Awaitable[None]]


def raise_descriptor_limit() -> None:
    """Let this process, and what it starts from now on, have as many descriptors as the hard limit allows.

    The soft limit is mostly 1024 for the sake of programs that call ``select(2)``, which this one does not. What runs
    in sandboxes notices nothing: their agents raise their own limit anyway.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Acceptor:
    """Accepts the connections of one listener.

    Args:
        listener: where they come from.
        name: what the log calls it.
        slots: a connection takes one before it is accepted and has it until it ends; who finds none waits in the
            system's queue. Without slots, who serves must bound them.
        spare: whether to turn away whom only the descriptors are left for that the program needs itself (`RESERVE`).
    """

    def __init__(
        self, listener: trio.SocketListener, *, name: str, slots: trio.Semaphore | None = None, spare: bool = True
    ) -> None:
        self._listener = listener
        self._name = name
        self._slots = slots
        self._spare = spare
        self._silent_until = -float("inf")

    async def run(self, serve: Serve, nursery: trio.Nursery) -> None:
        """Accept until cancelled, then close the listener.

        Each connection is served in a task of ``nursery``, and closed after it. Where there are no descriptors left,
        accepting is tried again after `BACK_OFF` seconds.
        """
        async with self._listener:
            while True:
                await trio.lowlevel.wait_readable(self._listener.socket)  # a place is not held while nobody comes
                if self._slots is not None:
                    await self._slots.acquire()
                stream: trio.SocketStream | None = None
                try:
                    stream = await self._accept()
                finally:
                    if stream is None:
                        self._free()
                if stream is not None:
                    nursery.start_soon(self._serve, serve, stream)

    async def _accept(self) -> trio.SocketStream | None:
        try:
            stream = await self._listener.accept()
        except OSError as error:
            if error.errno not in _SHORTAGES:
                raise
            self._complain(f"no connection can be accepted: {error.strerror}")
            await trio.sleep(BACK_OFF)  # there is no event for it
            return None
        if self._spare and not _leaves_some(stream.socket.fileno()):
            self._complain("connections are turned away: what descriptors are left is for the program itself")
            await trio.aclose_forcefully(stream)
            return None
        return stream

    async def _serve(self, serve: Serve, stream: trio.SocketStream) -> None:
        try:
            await serve(stream)
        finally:
            self._free()
            await trio.aclose_forcefully(stream)

    def _free(self) -> None:
        if self._slots is not None:
            self._slots.release()

    def _complain(self, what: str) -> None:
        now = trio.current_time()
        if now >= self._silent_until:
            self._silent_until = now + QUIET
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            _log.warning("%s: %s (the limit is %d; see 'ulimit -n')", self._name, what, limit)


def _leaves_some(descriptor: int) -> bool:
    """Whether the descriptors beyond the reserve are not in use yet: the system gives the lowest that is free."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit == resource.RLIM_INFINITY or descriptor < limit - min(RESERVE, limit // 4)
