"""How the two ends of a link find each other (``docs/protocol/link.md``, "HELLO and resynchronisation")."""

from __future__ import annotations

import enum
import secrets
from dataclasses import dataclass
from typing import Final

import trio

from iii_core.errors import LinkClosed
from iii_core.link import frames
from iii_core.link.frames import Decoder, Hello
from iii_core.link.limits import LinkLimits

RECEIVE_SIZE: Final = 65536
REPEAT: Final = 1.0


class Role(enum.Enum):
    """The initiator opens streams and issues their ids; the acceptor serves them."""

    INITIATOR = "initiator"
    ACCEPTOR = "acceptor"


@dataclass(frozen=True, slots=True)
class Handshake:
    """Both sides' `HELLO`, and the decoder that may hold bytes that came after the peer's."""

    ours: Hello
    theirs: Hello
    decoder: Decoder


async def shake_hands(stream: trio.abc.Stream, *, role: Role, limits: LinkLimits, resync: bool = False) -> Handshake:
    """Exchange `HELLO`s. ``resync``: the stream may have carried another connection before (initiator only).

    Takes as long as the peer does: put a timeout around it. When cancelled, close the stream.

    Raises:
        LinkError: the peer talks something else, or another version of this.
        LinkClosed: the stream ended first.
    """
    decoder = Decoder(max_message=limits.max_message)
    epoch = secrets.randbits(64) or 1
    if role is Role.ACCEPTOR:
        payload = await _next_hello(stream, decoder)
        ours = _hello(epoch, frames.decode_epochs(payload)[0], limits)
        await _send(stream, ours.encode())  # before theirs is judged: they can then name both versions
    else:
        ours = _hello(epoch, 0, limits)
        payload = await _answer(stream, decoder, ours, frames.RESYNC if resync else b"")
    return Handshake(ours, Hello.decode(payload), decoder)


async def _answer(stream: trio.abc.Stream, decoder: Decoder, ours: Hello, before: bytes) -> bytes:
    """Say `HELLO` until it is answered. Sending is never cut short by the wait for an answer: it would cut a frame."""
    await _send(stream, before)
    while True:
        await _send(stream, ours.encode())
        with trio.move_on_after(REPEAT):
            while True:
                payload = await _next_hello(stream, decoder)
                if frames.decode_epochs(payload)[1] == ours.epoch:
                    return payload
                decoder.desynchronise()  # left over from an earlier connection, or planted in what it carried


def render_knock() -> bytes:
    """A `HELLO` of an epoch that nobody takes up: its answer says that the guest agent runs. Leave that to be read.

    The agent answers any epoch, and whoever shakes hands afterwards discards what is of another one
    (``docs/protocol/link.md``, "HELLO and resynchronisation", 4 and 5).
    """
    return _hello(secrets.randbits(64) or 1, 0, LinkLimits()).encode()


def _hello(epoch: int, peer_epoch: int, limits: LinkLimits) -> Hello:
    return Hello(
        epoch=epoch,
        peer_epoch=peer_epoch,
        max_message=limits.max_message,
        max_streams=limits.max_streams,
        data_window=limits.data_window,
        message_window=limits.message_window,
    )


async def _next_hello(stream: trio.abc.Stream, decoder: Decoder) -> bytes:
    """The payload of the next thing that looks like a `HELLO`."""
    while (frame := decoder.next_frame()) is None:
        try:
            data = await stream.receive_some(RECEIVE_SIZE)
        except trio.BrokenResourceError as error:
            raise LinkClosed("the link broke before the peer said HELLO") from error
        if not data:
            raise LinkClosed("the link ended before the peer said HELLO")
        decoder.feed(data)
    return frame.payload


async def _send(stream: trio.abc.Stream, data: bytes) -> None:
    try:
        await stream.send_all(data)
    except trio.BrokenResourceError as error:
        raise LinkClosed("the link broke before HELLO was sent") from error
