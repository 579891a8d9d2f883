"""What a link does as time goes by, with a clock that jumps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from iii_core.errors import LinkClosed
from iii_core.link import frames
from iii_core.link.frames import Decoder, Hello
from iii_core.link.handshake import shake_hands
from iii_core.link.limits import LinkLimits
from iii_core.link.mux import Role, open_mux

from .linkpeer import HELLO, answer_hello, served


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


async def test_silence_ends_the_link_and_pings_prevent_it() -> None:
    limits = LinkLimits(ping_interval=2, dead_after=5)
    one, other = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:

        async def acceptor() -> None:
            async with open_mux(other, role=Role.ACCEPTOR) as mux:
                await mux.wait_closed()

        nursery.start_soon(acceptor)
        async with open_mux(one, role=Role.INITIATOR, limits=limits) as mux:
            await trio.sleep(100)
            mux.check()
    async with served(Role.INITIATOR, limits) as (mux, _):
        with pytest.raises(LinkClosed, match="silent for 5"):
            await (await mux.open(b"")).receive()


async def test_a_peer_that_never_reads_is_given_up() -> None:
    one, other = trio.testing.lockstep_stream_pair()
    async with trio.open_nursery() as nursery:

        async def greet() -> None:
            await answer_hello(other)

        nursery.start_soon(greet)
        async with open_mux(one, role=Role.INITIATOR, limits=LinkLimits(send_timeout=7)) as mux:
            await mux.open(b"")
            await mux.wait_closed()
            with pytest.raises(LinkClosed, match="took nothing for 7"):
                mux.check()


async def test_a_peer_that_says_nothing_is_not_waited_for() -> None:
    for role in Role:
        one, _other = trio.testing.memory_stream_pair()
        with pytest.raises(LinkClosed, match="did not say HELLO within 10"):
            async with open_mux(one, role=role):
                raise AssertionError


async def test_the_initiator_repeats_itself_and_ignores_what_is_not_for_it() -> None:
    one, other = trio.testing.memory_stream_pair()
    old = Hello(epoch=1, peer_epoch=2, version=77, max_message=1, max_streams=1, data_window=1, message_window=1)

    async def late_agent() -> None:
        await other.send_all(b"rest of a frame" + old.encode() + old.encode()[:20])
        decoder = Decoder(max_message=1 << 16)
        heard = 0
        while heard < 3:
            while (frame := decoder.next_frame()) is None:
                decoder.feed(await other.receive_some())
            heard += 1
        await other.send_all(replace(HELLO, peer_epoch=frames.decode_epochs(frame.payload)[0]).encode())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(late_agent)
        hands = await shake_hands(one, role=Role.INITIATOR, limits=LinkLimits(), resync=False)
    assert hands.theirs.epoch == 9
    assert trio.current_time() >= 2
