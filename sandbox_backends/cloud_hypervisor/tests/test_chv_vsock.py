"""The handshake of the hybrid vsock: what follows it is the agent's, down to the byte."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from iii_sandbox_cloud_hypervisor import vsock

from iii_core.sandbox.launcher import LaunchFailed
from iii_core.testing.sandbox_harness import cancelled_at

from .vmmkit import descriptors

PAUSE = 0.02


@asynccontextmanager
async def vmm(path: Path, *answers: bytes | None) -> AsyncGenerator[list[bytes]]:
    """A VMM that gives these answers, one for each connection; None hangs up without one."""
    seen: list[bytes] = []

    async def serve(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        for answer in answers:
            connected, _ = await listener.accept()
            async with trio.SocketStream(connected) as stream:
                seen.append(bytes(await stream.receive_some()))
                if answer is not None:
                    await stream.send_all(answer)
                    await stream.receive_some()

    with trio.socket.socket(socket.AF_UNIX) as listener:
        await listener.bind(str(path))
        listener.listen(4)
        async with trio.open_nursery() as nursery:
            await nursery.start(serve)
            yield seen
            nursery.cancel_scope.cancel()


async def test_nothing_of_the_agents_is_lost(tmp_path: Path) -> None:
    async with vmm(tmp_path / "s", b"OK 1073741824\nHELLO") as seen:
        with await vsock.connect(tmp_path / "s", 1024, longest_pause=PAUSE) as link:
            assert link.recv(100) == b"HELLO"
            assert not link.getblocking()
    assert seen == [b"CONNECT 1024\n"]


async def test_it_is_tried_until_somebody_listens(tmp_path: Path) -> None:
    async with vmm(tmp_path / "s", None, None, None, b"OK 1\n") as seen:
        (await vsock.connect(tmp_path / "s", 7, longest_pause=PAUSE)).close()
    assert seen == [b"CONNECT 7\n"] * 4


async def test_a_socket_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def later() -> None:
            await trio.sleep(0.1)
            async with vmm(tmp_path / "s", b"OK 1\n"):
                await done.wait()

        done = trio.Event()
        (await vsock.connect(tmp_path / "s", 1, longest_pause=PAUSE)).close()
        done.set()


@pytest.mark.parametrize("answer", [b"NO\n", b"OK\n", b"OK x\n", b"ok 1\n", b"OK 12345678901\n", b"x" * 100, b"\n"])
async def test_another_answer_is_an_error(tmp_path: Path, answer: bytes) -> None:
    async with vmm(tmp_path / "s", answer):
        with pytest.raises(LaunchFailed, match="the VMM's vsock socket answered"):
            await vsock.connect(tmp_path / "s", 1, longest_pause=PAUSE)


async def test_half_an_answer_is_none(tmp_path: Path) -> None:
    async def half(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"OK 1")

    async with trio.open_nursery() as nursery:
        with trio.socket.socket(socket.AF_UNIX) as listener:
            await listener.bind(str(tmp_path / "s"))
            listener.listen(4)

            @nursery.start_soon
            async def serve() -> None:
                connected, _ = await listener.accept()
                async with trio.SocketStream(connected) as stream:
                    await half(stream)
                connected, _ = await listener.accept()
                async with trio.SocketStream(connected) as stream:
                    await half(stream)
                    await stream.send_all(b"2\n")

            with await vsock.connect(tmp_path / "s", 1, longest_pause=PAUSE) as link:
                assert link.fileno() >= 0


async def test_cancelled_anywhere_it_leaves_no_descriptor(tmp_path: Path) -> None:
    before, step, cancelled = descriptors(), 1, True
    while cancelled:
        async with vmm(tmp_path / f"s{step}", None, b"OK 1\n"):
            links: list[socket.socket] = []
            cancelled = await cancelled_at(step, partial(connected, tmp_path / f"s{step}", links))
            for link in links:
                link.close()
        step += 1
    assert step > 5
    assert descriptors() == before


async def connected(path: Path, links: list[socket.socket]) -> None:
    links.append(await vsock.connect(path, 1, longest_pause=PAUSE))
