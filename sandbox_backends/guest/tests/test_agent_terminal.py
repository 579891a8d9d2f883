"""Processes on a terminal, by the real agent."""

from __future__ import annotations

import os

import pytest
import trio

from iii_core.sandbox.agent import AgentProcess, ExitStatus, TerminalSize

from .agentkit import StartAgent, outcome, run, spec

SIZE = TerminalSize(rows=33, cols=123)


async def read_until(process: AgentProcess, text: bytes) -> bytes:
    """Output up to and with ``text``."""
    seen = b""
    with trio.fail_after(30):
        while text not in seen:
            output = await process.receive_output()
            assert output is not None, seen
            assert output[0] == 1
            seen += output[1]
    return seen


async def test_it_is_a_terminal_of_that_size(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        script = "tty; stty size; for fd in 0 1 2; do test -t $fd && echo $fd; done; ps -o stat= -p $$; exit 7"
        out, err, status = await run(agent, "sh", "-c", script, tty=SIZE)
    lines = out.decode().split("\r\n")
    assert lines[0].startswith("/dev/pts/")
    assert lines[1:5] == ["33 123", "0", "1", "2"]
    assert "s" in lines[5], "it leads a session"
    assert "+" in lines[5], "in the foreground of its terminal"
    assert (err, status) == (b"", ExitStatus(7))


async def test_resize(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        script = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.01; done"
        process = await agent.spawn(spec("sh", "-c", script, tty=SIZE))
        await read_until(process, b"ready\r\n")
        await process.resize(TerminalSize(rows=10, cols=20))
        assert (await outcome(process))[0] == b"10 20\r\n"
        await process.resize(SIZE)


async def test_input_is_echoed_and_ctrl_c_interrupts(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        process = await agent.spawn(spec("sh", "-c", "trap 'echo; exit 130' INT; echo ready; cat; exit 1", tty=SIZE))
        await read_until(process, b"ready\r\n")
        await process.send_stdin(b"typed\n")
        await read_until(process, b"typed\r\ntyped\r\n")
        await process.send_stdin(b"\x03")
        out, _, status = await outcome(process)
        assert out.startswith(b"^C")
        assert status == ExitStatus(130)


async def test_the_end_of_input_is_typed(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        process = await agent.spawn(spec("sh", "-c", "stty -echo; echo ready; cat; echo after", tty=SIZE))
        await read_until(process, b"ready\r\n")
        await process.send_stdin(b"line\n")
        await read_until(process, b"line\r\n")
        await process.close_stdin()
        assert (await outcome(process))[0] == b"after\r\n"


async def test_all_output_comes_before_the_end(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        out, _, status = await run(agent, "sh", "-c", "stty -onlcr; seq 100000; exit 2", tty=SIZE)
    assert out == b"".join(b"%d\n" % number for number in range(1, 100_001))
    assert status == ExitStatus(2)


async def test_a_grandchild_that_keeps_the_terminal_does_not_hold_up_the_end(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        with trio.fail_after(30):
            out, _, status = await run(agent, "sh", "-c", "trap '' HUP; sleep 100 & echo done; exit 3", tty=SIZE)
    assert (out, status) == (b"done\r\n", ExitStatus(3))


async def test_what_cannot_be_started_on_a_terminal(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        with pytest.raises(Exception, match="no-such-program"):
            await agent.spawn(spec("no-such-program", tty=SIZE))
        process = await agent.spawn(spec("cat", tty=SIZE))
        await process.kill()
        assert await process.wait() == ExitStatus(0, 9)


async def test_many_bytes_typed_in_raw_mode_are_exact(start_agent: StartAgent) -> None:
    data = os.urandom(300_000)
    async with start_agent() as agent, trio.open_nursery() as nursery:
        script = f"stty raw -echo; echo ready; head -c {len(data)}"
        process = await agent.spawn(spec("sh", "-c", script, tty=SIZE))
        await read_until(process, b"ready\n")
        nursery.start_soon(process.send_stdin, data)
        out, _, status = await outcome(process)
    assert out == data
    assert status == ExitStatus(0)
