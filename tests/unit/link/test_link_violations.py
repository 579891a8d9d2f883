"""A mux whose peer says what it should not, and how links end."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from iii_core.errors import LinkClosed, LinkError
from iii_core.link import frames
from iii_core.link.frames import Decoder, Hello
from iii_core.link.handshake import shake_hands
from iii_core.link.limits import LinkLimits
from iii_core.link.mux import Closed, Data, Message, MuxStream, Role, open_mux

from .linkpeer import served

OPEN = frames.encode_frame(frames.OPEN, 1, b"")
AS_ACCEPTOR = {
    "a stream that is not open": frames.encode_data(1, 0, b"x"),
    "open twice": OPEN * 2,
    "open backwards": frames.encode_frame(frames.OPEN, 5, b"") + OPEN,
    "too many streams": b"".join(frames.encode_frame(frames.OPEN, number, b"") for number in range(1, 5)),
    "payload beyond max_message": frames.encode_frame(frames.OPEN, 1, bytes(5001)),
    "data beyond the window": OPEN + frames.encode_data(1, 0, bytes(16384)) * 2,
    "tiny data beyond the window": OPEN + frames.encode_data(1, 0, b"x") * 3000,
    "messages beyond the window": OPEN + frames.encode_frame(frames.MESSAGE, 1, bytes(1100)) * 2,
    "channel 8": OPEN + frames.encode_data(1, 8, b"x"),
    "data after eof": OPEN + frames.encode_frame(frames.EOF, 1, b"\0") + frames.encode_data(1, 0, b"x"),
    "eof twice": OPEN + frames.encode_frame(frames.EOF, 1, b"\0") * 2,
    "credit beyond all bounds": OPEN + frames.encode_credit(1, 2**31, 0),
    "data after close": OPEN + frames.encode_close(1, "") + frames.encode_data(1, 0, b"x"),
    "close twice": OPEN + frames.encode_close(1, "") * 2,
    "hello of another epoch": Hello(
        epoch=3, max_message=1 << 16, max_streams=1, data_window=1 << 15, message_window=1024
    ).encode(),
    "garbage": b"\xff" * 30,
}


@pytest.mark.parametrize("data", AS_ACCEPTOR.values(), ids=AS_ACCEPTOR.keys())
async def test_a_violation_ends_the_link_for_everybody(data: bytes) -> None:
    async with served(Role.ACCEPTOR) as (mux, peer):
        await peer.send_all(
            frames.encode_frame(frames.OPEN, 1, b"") if data[4] != frames.OPEN and b"nobody" in data else b""
        )
        await peer.send_all(data)
        with trio.fail_after(20):
            await mux.wait_closed()
        with pytest.raises(LinkError) as caught:
            mux.check()
        assert type(caught.value) is LinkError, "not only closed"


async def test_an_initiator_takes_no_streams() -> None:
    async with served(Role.INITIATOR) as (mux, peer):
        await peer.send_all(OPEN)
        with trio.fail_after(20):
            await mux.wait_closed()
        with pytest.raises(LinkError, match="OPEN of stream 1"):
            await mux.open(b"")


async def test_what_came_before_a_violation_is_still_given() -> None:
    async with served(Role.ACCEPTOR) as (mux, peer):
        await peer.send_all(OPEN + frames.encode_data(1, 3, b"x") + bytes(9))
        _, stream = await mux.incoming.receive()
        await mux.wait_closed()
        assert await stream.receive() == Data(3, b"x")
        with pytest.raises(LinkError):
            await stream.receive()


async def test_the_end_of_the_stream_is_a_close_and_a_cut_is_named() -> None:
    for tail, text in ((b"", "ended"), (OPEN[:5], "cut within a frame")):
        async with served(Role.ACCEPTOR) as (mux, peer):
            await peer.send_all(OPEN + tail)
            _, stream = await mux.incoming.receive()
            await peer.aclose()
            with pytest.raises(LinkClosed, match=text):
                await stream.receive()
            with pytest.raises(LinkClosed):
                await stream.send_data(0, b"x")
            with pytest.raises(trio.EndOfChannel):
                await mux.incoming.receive()


async def test_everybody_who_waits_learns_of_the_end() -> None:
    async def expect_closed(function: object, *args: object) -> None:
        with pytest.raises(LinkClosed):
            await function(*args)  # type: ignore[operator]
        woken.append(function)

    woken: list[object] = []
    async with served(Role.INITIATOR) as (mux, peer):
        first, *_ = [await mux.open(b"") for _ in range(3)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_closed, first.receive)
            nursery.start_soon(expect_closed, first.send_data, 0, bytes(1 << 20))
            nursery.start_soon(expect_closed, first.until, lambda: False)
            nursery.start_soon(expect_closed, mux.open, b"")
            await trio.testing.wait_all_tasks_blocked()
            await peer.aclose()
    assert len(woken) == 4


async def test_both_sides_refuse_another_version() -> None:
    one, other = trio.testing.memory_stream_pair()
    strange = Hello(epoch=1, version=9, max_message=1 << 16, max_streams=1, data_window=1 << 15, message_window=1024)
    await other.send_all(strange.encode())
    with pytest.raises(LinkError, match="version 9"):
        await shake_hands(one, role=Role.ACCEPTOR, limits=LinkLimits())
    answer = Decoder(max_message=1 << 16)
    answer.feed(await other.receive_some())
    assert answer.next_frame() is not None, "it says its own version before it refuses"


async def test_leaving_sends_what_is_queued() -> None:
    one, other = trio.testing.memory_stream_pair()
    received: list[object] = []

    async def acceptor() -> None:
        async with open_mux(other, role=Role.ACCEPTOR) as mux:
            _, stream = await mux.incoming.receive()
            while not received or received[-1] != Closed("done"):
                received.append(await stream.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(acceptor)
        async with open_mux(one, role=Role.INITIATOR) as mux:
            stream = await mux.open(b"")
            await stream.send_data(1, b"abc")
            await stream.send_message(b"last words")
            await stream.close("done")
    assert received == [Data(1, b"abc"), Message(b"last words"), Closed("done")]


async def test_an_exception_of_the_body_comes_out_as_it_is() -> None:
    async def body() -> None:
        async with served(Role.INITIATOR):
            raise KeyError("mine")

    with pytest.RaisesGroup(KeyError):  # the group is that of this test's own nursery
        await body()


async def test_cancelled_receives_lose_nothing_and_cancelled_sends_corrupt_nothing() -> None:
    one, other = trio.testing.memory_stream_pair()
    total = 300_000
    received = bytearray()

    async def acceptor() -> None:
        async with open_mux(other, role=Role.ACCEPTOR, limits=LinkLimits(data_window=1 << 15)) as mux:
            _, stream = await mux.incoming.receive()
            while len(received) < total:
                with trio.move_on_after(0):
                    await trio.lowlevel.checkpoint()
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(receive_one, stream)
                        if len(received) % 3:
                            await trio.lowlevel.checkpoint()
                        scope.cancel() if len(received) % 2 else None
            await stream.close("all")

    async def receive_one(stream: MuxStream) -> None:
        item = await stream.receive()
        if isinstance(item, Data):
            received.extend(item.data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(acceptor)
        async with open_mux(one, role=Role.INITIATOR) as mux:
            stream = await mux.open(b"")
            with trio.fail_after(20):
                await stream.send_data(0, b"s" * total)
                assert await stream.receive() == Closed("all")
    assert bytes(received) == b"s" * total


@given(st.lists(st.binary(min_size=1, max_size=100), max_size=8))
@settings(max_examples=150, deadline=None)
def test_no_bytes_of_a_peer_do_more_than_end_the_link(pieces: list[bytes]) -> None:
    async def main() -> None:
        async with served(Role.ACCEPTOR) as (mux, peer):
            await peer.send_all(OPEN)
            _, stream = await mux.incoming.receive()
            try:
                for piece in pieces:
                    await peer.send_all(piece)
                await peer.aclose()
                while not isinstance(await stream.receive(), Closed):
                    pass
            except LinkError:
                pass
            with trio.fail_after(20):
                await mux.wait_closed()

    trio.run(main)
