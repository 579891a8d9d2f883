"""A client of the framed link without trio, for commands that must start fast: one request, then messages."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from typing import Final

from iii_core.errors import LinkClosed, LinkError
from iii_core.link import frames
from iii_core.link.frames import Decoder, Frame, Hello

MAX_MESSAGE: Final = 4 << 20
HELLO_TIMEOUT: Final = 10.0
_STREAM: Final = 1
_WINDOW: Final = 1 << 16
_RECEIVE_SIZE: Final = 1 << 16


def converse(connection: socket.socket, request: bytes, *, timeout: float | None = None) -> Iterator[bytes]:
    """Open one stream with ``request`` as its payload, and give the peer's messages until it closes the stream.

    Args:
        connection: a connected stream socket, which stays the caller's; of no further use afterwards.
        request: at most what the acceptor takes in one message (1 MiB where it is an engine).
        timeout: how many seconds to wait for each message; None for ever.

    Data frames are a violation: this is for requests and answers. Closing the iterator early leaves the stream open, so
    close the connection: that tells the peer.

    Raises:
        LinkClosed: the connection ended or broke, or nothing came in time.
        LinkError: the peer broke the protocol or speaks another version.
    """
    ours = Hello(
        epoch=int.from_bytes(os.urandom(8), "little") or 1,
        max_message=MAX_MESSAGE,
        max_streams=1,
        data_window=_WINDOW,
        message_window=_WINDOW,
    )
    decoder = Decoder(max_message=MAX_MESSAGE)
    try:
        connection.settimeout(HELLO_TIMEOUT)
        connection.sendall(ours.encode())
        theirs = Hello.decode(_next_frame(connection, decoder, time.monotonic() + HELLO_TIMEOUT).payload)
        if theirs.peer_epoch != ours.epoch:
            raise LinkError("the peer answered somebody else's HELLO")
        if len(request) > theirs.max_message:
            raise LinkError(f"a request of {len(request)} bytes is too long: the peer takes {theirs.max_message}")
        connection.sendall(frames.encode_message(frames.OPEN, _STREAM, request))
        yield from _messages(connection, decoder, timeout)
    except TimeoutError as error:
        raise LinkClosed("the peer did not answer in time") from error
    except OSError as error:
        raise LinkClosed(f"the link broke: {error.strerror or error}") from error


def _messages(connection: socket.socket, decoder: Decoder, timeout: float | None) -> Iterator[bytes]:
    def deadline() -> float | None:
        return None if timeout is None else time.monotonic() + timeout

    while (payload := _next_message(connection, decoder, deadline())) is not None:
        yield payload


def _next_message(connection: socket.socket, decoder: Decoder, deadline: float | None) -> bytes | None:
    """The next message, None once the stream is closed."""
    while True:
        frame = _next_frame(connection, decoder, deadline)
        match frame.type:
            case frames.MESSAGE if frame.stream == _STREAM:
                connection.sendall(frames.encode_credit(_STREAM, 0, frame.cost))
                return frame.payload
            case frames.CLOSE if frame.stream == _STREAM:
                return None
            case frames.CREDIT if frame.stream == _STREAM:
                pass
            case frames.PING:
                connection.sendall(frames.encode_token(frames.PONG, frames.decode_token(frame.payload)))
            case _:
                raise LinkError(f"unexpected frame of type {frame.type}")


def _next_frame(connection: socket.socket, decoder: Decoder, deadline: float | None) -> Frame:
    """The next frame; ``deadline`` by the monotonic clock. Raises ``TimeoutError``, ``OSError``, `LinkError`."""
    while (frame := decoder.next_frame()) is None:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        data = connection.recv(_RECEIVE_SIZE)
        if not data:
            raise LinkClosed("the link ended")
        decoder.feed(data)
    return frame
