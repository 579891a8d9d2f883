"""Ports of loopback for programs that must be told one before they listen."""

from __future__ import annotations

import socket
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def reserved_port() -> Generator[int]:
    """A port of 127.0.0.1 that only who is told of it can have while the block lasts.

    It is bound here and not listened at. So the kernel gives it to nobody who wants any port (bind(2) to port 0, or
    connect(2)), a server that asks for it with ``SO_REUSEADDR``, as servers do, gets it (socket(7)), and who connects
    while there is none is refused.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])
