"""Both ends of a link over an in-memory stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from iii_core.errors import LinkClosed, UsageError
from iii_core.link.limits import LinkLimits
from iii_core.link.mux import Closed, Data, Eof, Message, Mux, MuxStream, Role, open_mux


@asynccontextmanager
async def both_ends(
    initiator: LinkLimits | None = None, acceptor: LinkLimits | None = None
) -> AsyncGenerator[tuple[Mux, Mux]]:
    one, other = trio.testing.lockstep_stream_pair()
    opened: list[Mux] = []
    done = trio.Event()

    async def accept(task_status: trio.TaskStatus[None]) -> None:
        async with open_mux(other, role=Role.ACCEPTOR, limits=acceptor) as mux:
            opened.append(mux)
            task_status.started()
            await done.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(nursery.start, accept)
        async with open_mux(one, role=Role.INITIATOR, limits=initiator) as mux:
            await trio.testing.wait_all_tasks_blocked()
            yield mux, opened[0]
        done.set()


async def opened_pair(one: Mux, other: Mux) -> tuple[MuxStream, MuxStream]:
    here = await one.open(b"hello")
    payload, there = await other.incoming.receive()
    assert payload == b"hello"
    return here, there


async def receive_data(stream: MuxStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        item = await stream.receive()
        assert isinstance(item, Data)
        data += item.data
    return data


async def test_everything_arrives_in_order_both_ways() -> None:
    async with both_ends() as (one, other):
        here, there = await opened_pair(one, other)
        for sender, receiver in ((here, there), (there, here)):
            await sender.send_data(1, b"abc")
            await sender.send_message(b"m" * 200_000)
            await sender.send_eof(1)
            await sender.send_eof(1)
            assert [await receiver.receive() for _ in range(3)] == [Data(1, b"abc"), Message(b"m" * 200_000), Eof(1)]
        await here.close("done")
        assert [await there.receive() for _ in range(2)] == [Closed("done")] * 2
        with pytest.raises(LinkClosed):
            await there.send_data(0, b"x")
        with pytest.raises(trio.ClosedResourceError):
            await here.receive()


async def test_a_stalled_stream_stalls_no_other() -> None:
    async with both_ends() as (one, other), trio.open_nursery() as nursery:
        stalled, _unread = await opened_pair(one, other)
        nursery.start_soon(stalled.send_data, 0, bytes(10 << 20))
        await trio.testing.wait_all_tasks_blocked()
        here, there = await opened_pair(one, other)
        nursery.start_soon(here.send_data, 0, b"z" * (1 << 20))
        assert await receive_data(there, 1 << 20) == b"z" * (1 << 20)
        await stalled.send_message(b"a message needs no data credit")
        nursery.cancel_scope.cancel()


async def test_the_number_of_open_streams_is_bounded() -> None:
    async with both_ends(acceptor=LinkLimits(max_streams=2)) as (one, other):
        first, _ = await opened_pair(one, other)
        await opened_pair(one, other)
        with trio.move_on_after(0.05) as scope:
            await one.open(b"")
        assert scope.cancelled_caught
        await first.close()
        await opened_pair(one, other)


async def test_a_message_too_long_for_the_peer_is_refused_here() -> None:
    async with both_ends(acceptor=LinkLimits(max_message=2000)) as (one, other):
        here, _ = await opened_pair(one, other)
        with pytest.raises(UsageError):
            await here.send_message(bytes(2001))
        with pytest.raises(UsageError):
            await one.open(bytes(2001))
        await here.send_message(bytes(2000))
