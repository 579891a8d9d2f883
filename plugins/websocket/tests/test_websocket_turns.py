"""Nobody waits for long because somebody else sends very many very small frames."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing
from iii_plugin_websocket.guard import FrameGuard
from iii_plugin_websocket.stream import TURN, GuardedStream

from iii_core.transport.port import Limits, Listener, Peer

from .conftest import open_websocket
from .websocket_wire import TEXT, frame, upgrade_head

TURNS = 10
CONNECTIONS = 20
PIECE = frame(0, b"", fin=False)
MESSAGE = frame(TEXT, b"", fin=False) + PIECE * (TURN * TURNS - 2) + frame(0, b"end")


class Rounds:
    """How often all tasks that could run have run."""

    def __init__(self) -> None:
        self.count = 0

    async def run(self) -> None:
        while True:
            await trio.lowlevel.checkpoint()
            self.count += 1


@asynccontextmanager
async def counted() -> AsyncGenerator[Rounds]:
    rounds = Rounds()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rounds.run)
        yield rounds
        nursery.cancel_scope.cancel()


async def test_others_run_after_every_few_frames() -> None:
    near, far = trio.testing.memory_stream_pair()
    stream = GuardedStream(near, FrameGuard(1000), head=b"head")
    assert await stream.receive_some() == b"head"
    await far.send_all(MESSAGE)
    slices: list[bytes] = []
    async with counted() as rounds:
        while sum(map(len, slices)) < len(MESSAGE):
            slices.append(await stream.receive_some(len(MESSAGE)))
        assert rounds.count >= TURNS - 1
    assert len(slices) == TURNS
    assert b"".join(slices) == MESSAGE
    await stream.aclose()


@pytest.mark.parametrize("together", [True, False])
async def test_the_connections_of_one_sandbox_take_turns(together: bool) -> None:
    """So that a hundred of them get no more of the engine's time than one."""
    done = 0
    finished = trio.Event()

    async def serve(peer: Peer) -> None:
        nonlocal done
        assert (await peer.receive()).data == b"end"
        done += 1
        if done == CONNECTIONS:
            finished.set()
        await trio.sleep_forever()

    listener = Listener(admit=lambda request: None, serve=serve, limits=Limits())
    async with open_websocket() as transport, counted() as rounds, trio.open_nursery() as nursery:
        for number in range(CONNECTIONS):
            near, far = trio.testing.memory_stream_pair()
            await far.send_all(upgrade_head() + MESSAGE)
            sandbox = "one" if together else f"box-{number}"
            nursery.start_soon(partial(transport.serve_stream, near, listener, sandbox=sandbox))
        await finished.wait()
        assert (rounds.count >= CONNECTIONS * TURNS) == together
        nursery.cancel_scope.cancel()
