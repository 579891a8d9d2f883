"""What tests of one end of a link need: the other end, by hand."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace

import trio
import trio.testing

from iii_core.link import frames
from iii_core.link.frames import Decoder, Hello
from iii_core.link.limits import LinkLimits
from iii_core.link.mux import Mux, Role, open_mux

HELLO = Hello(epoch=9, max_message=1 << 20, max_streams=4, data_window=1 << 16, message_window=1 << 14)
LIMITS = LinkLimits(data_window=1 << 15, message_window=1024, max_streams=3, max_message=5000)


async def answer_hello(stream: trio.abc.Stream) -> Decoder:
    """Be an acceptor, as far as the handshake goes."""
    decoder = Decoder(max_message=1 << 20)
    while (frame := decoder.next_frame()) is None:
        decoder.feed(await stream.receive_some())
    await stream.send_all(replace(HELLO, peer_epoch=frames.decode_epochs(frame.payload)[0]).encode())
    return decoder


@asynccontextmanager
async def served(role: Role, limits: LinkLimits = LIMITS) -> AsyncGenerator[tuple[Mux, trio.abc.Stream]]:
    """A mux, and the other end of its byte stream after the handshake."""
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        if role is Role.INITIATOR:
            nursery.start_soon(answer_hello, theirs)
        else:
            await theirs.send_all(HELLO.encode())
        async with open_mux(ours, role=role, limits=limits) as mux:
            yield mux, theirs
