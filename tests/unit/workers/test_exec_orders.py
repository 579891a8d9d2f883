"""What an exec client asks for besides its data: sizes are coalesced, signals are bounded, nonsense is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

import pytest
import trio
import trio.testing

from iii_core.errors import LinkError, UsageError
from iii_core.link.mux import MuxStream
from iii_core.sandbox.agent import AgentProcess, TerminalSize
from iii_core.workers.exec import MESSAGE_BACKLOG, Orders


class Stream:
    """The part of a `MuxStream` that is used."""

    def __init__(self) -> None:
        self.take: Callable[[bytes], None] = lambda payload: None

    def divert_messages(self, on_message: Callable[[bytes], None]) -> None:
        self.take = on_message

    def tell(self, **message: Any) -> None:
        self.take(json.dumps(message).encode())


class Process:
    """Does what it is asked for when `free` is set, one thing at a time."""

    def __init__(self) -> None:
        self.free = trio.Event()
        self.did: list[object] = []

    async def signal(self, number: int) -> None:
        await self.free.wait()
        self.did.append(number)

    async def resize(self, size: TerminalSize) -> None:
        await self.free.wait()
        self.did.append((size.rows, size.cols))


async def test_of_many_sizes_the_last_one_counts() -> None:
    stream, process = Stream(), Process()
    orders = Orders(cast("MuxStream", stream))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(orders.obey, cast("AgentProcess", process))
        stream.tell(resize=[1, 1])
        await trio.testing.wait_all_tasks_blocked()
        for number in range(20 * MESSAGE_BACKLOG):
            stream.tell(resize=[number, 2])
        stream.tell(signal=15)
        process.free.set()
        await trio.testing.wait_all_tasks_blocked()
        assert process.did == [(1, 1), 15, (20 * MESSAGE_BACKLOG - 1, 2)]
        stream.tell(signal=2, resize=[3, 3])
        await trio.testing.wait_all_tasks_blocked()
        assert process.did[3:] == [2, (3, 3)]
        nursery.cancel_scope.cancel()


async def test_signals_that_nobody_takes_end_the_link() -> None:
    stream = Stream()
    Orders(cast("MuxStream", stream))
    for _ in range(MESSAGE_BACKLOG):
        stream.tell(signal=2)
    with pytest.raises(LinkError, match="too many messages"):
        stream.tell(signal=2)


@pytest.mark.parametrize("payload", [b"{", b'{"signal": "x"}', b"[" * 100_000])
async def test_nonsense_is_refused(payload: bytes) -> None:
    stream = Stream()
    orders = Orders(cast("MuxStream", stream))
    stream.take(payload)
    with pytest.raises(UsageError, match="malformed exec message"):
        await orders.obey(cast("AgentProcess", Process()))
