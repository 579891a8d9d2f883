"""STATS and DIAL by the real agent (docs/protocol/agent.md)."""

from __future__ import annotations

import socket

import pytest
import trio

from iii_core.errors import UsageError
from iii_core.sandbox.agent import Agent

from .agentkit import StartAgent, run, spec

BUSY = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"
HOLD = "import sys\nheld = bytearray(64 << 20)\nprint('held', flush=True)\nsys.stdin.read()"


async def test_cpu_time_counts_the_ended_too(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        before = await agent.stats()
        assert before.processes == 0
        for _ in range(2):
            await run(agent, "python3", "-c", BUSY)
            await run(agent, "sh", "-c", f"python3 -c '{BUSY}'; true")
        after = await agent.stats()
        assert 1.1e9 < after.cpu_ns - before.cpu_ns < 10e9
        assert (after.processes, after.disk_used) == (0, None)  # its root is the host's


async def test_memory_and_processes_are_those_that_are_there(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        process = await agent.spawn(spec("sh", "-c", f'python3 -c "{HOLD}"', stdin=True))
        assert await process.receive_output() == (1, b"held\n")
        stats = await agent.stats()
        assert 64 << 20 <= stats.memory < 200 << 20
        assert stats.processes >= 1
        await process.close_stdin()
        await process.wait()
        assert (await agent.stats()).memory < 64 << 20


async def test_several_may_ask_at_once_and_one_may_give_up(start_agent: StartAgent) -> None:
    async with start_agent() as agent, trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(_ask, agent, number)


async def _ask(agent: Agent, number: int) -> None:
    with trio.move_on_after(0 if number % 3 == 0 else 30) as scope:
        assert (await agent.stats()).processes == 0
    assert scope.cancelled_caught == (number % 3 == 0)


async def serve_echo(listener: trio.SocketListener) -> None:
    async def echo(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)
        await stream.send_eof()

    await trio.serve_listeners(echo, [listener])


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_port_inside_can_be_connected_to(start_agent: StartAgent, host: str) -> None:
    listener = (await trio.open_tcp_listeners(0, host=host))[0]
    port: int = listener.socket.getsockname()[1]
    data = bytes(range(256)) * 4096
    async with start_agent() as agent, trio.open_nursery() as servers:
        servers.start_soon(serve_echo, listener)
        async with await agent.dial(port) as connection, trio.open_nursery() as nursery:
            nursery.start_soon(connection.send_all, data)
            received = b""
            while len(received) < len(data):
                received += await connection.receive_some()
            assert received == data
            await connection.send_eof()
            assert await connection.receive_some() == b""
        servers.cancel_scope.cancel()


async def test_a_port_where_nobody_listens_is_refused(start_agent: StartAgent) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        async with start_agent() as agent:
            with pytest.raises(ConnectionRefusedError, match="Connection refused"):
                await agent.dial(port)
            with pytest.raises(UsageError):
                await agent.dial(0)
            assert (await agent.stats()).processes == 0


async def test_what_was_sent_arrives_though_it_is_closed_at_once(start_agent: StartAgent) -> None:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port: int = listener.socket.getsockname()[1]
    async with start_agent() as agent:
        async with await agent.dial(port) as connection:
            await connection.send_all(b"last words")
        with trio.fail_after(30):
            accepted = await listener.accept()
            assert await accepted.receive_some(100) == b"last words"
            assert await accepted.receive_some(100) == b""
        await accepted.aclose()
    await listener.aclose()
