"""Processes and connections that go from one host to the next, by the real agent."""

from __future__ import annotations

import errno
import random
import signal
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import psutil
import pytest
import trio

from iii_core.errors import ProcessSpawnError, UsageError
from iii_core.link import frames
from iii_core.sandbox import agent_wire as wire
from iii_core.sandbox.agent import Agent, AgentProcess, ExitStatus, ServeTunnel, TerminalSize, open_agent
from iii_core.sandbox.agent_wire import Kind, Tag, encode
from iiitools.processes import still_running

from .agentkit import outcome, spec, until
from .conftest import Running, refuse_tunnel, start_program
from .rawlink import RawHost, message, opening
from .test_agent_link import raw_host

COUNT = "i=0; until [ -e {} ]; do echo $i; i=$((i+1)); sleep 0.002; done; echo $i; echo end"
UNTIL = "while [ ! -e {} ]; do sleep 0.02; done"
OpenHost: TypeAlias = Callable[..., AbstractAsyncContextManager[Agent]]
Connect: TypeAlias = Callable[[int], Awaitable[trio.SocketStream]]


@pytest.fixture
async def program(anyio_backend: str, agent_program: Path) -> AsyncGenerator[Running]:
    """An agent whose link outlives its hosts."""
    running = start_program(agent_program)
    try:
        yield running
    finally:
        with trio.move_on_after(10, shield=True):
            await running.end()


@pytest.fixture
def next_host(program: Running) -> OpenHost:
    """``async with next_host() as agent``: a host that comes after the last one."""

    @asynccontextmanager
    async def open_host(
        *, tunnel_ports: Sequence[int] = (), serve_tunnel: ServeTunnel = refuse_tunnel
    ) -> AsyncGenerator[Agent]:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(program.link.dup()))
        async with open_agent(stream, tunnel_ports=tunnel_ports, serve_tunnel=serve_tunnel, resync=True) as agent:
            yield agent

    return open_host


async def release(process: AgentProcess, key: str = "it") -> bytes:
    """Release; gives what came before."""
    received = bytearray()

    async def receive() -> None:
        while (output := await process.receive_output()) is not None:
            received.extend(output[1])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        assert await process.release(key)
    return bytes(received)


async def test_nothing_of_the_output_is_lost(next_host: OpenHost, tmp_path: Path) -> None:
    """Handed over within an epoch and across epochs, while it writes."""
    printed = b""
    async with next_host() as agent:
        assert agent.hands_over
        process = await agent.spawn(spec("sh", "-c", COUNT.format(tmp_path / "enough")))
        pid = process.pid
        for _ in range(3):
            await trio.sleep(0.05)
            printed += await release(process)
            await trio.sleep(0.02)
            process = await agent.adopt("it")
            assert process.pid == pid
        printed += await release(process)
    for _ in range(2):
        async with next_host() as agent:
            process = await agent.adopt("it")
            await trio.sleep(0.05)
            printed += await release(process)
    (tmp_path / "enough").touch()
    async with next_host() as agent:
        out, _, status = await outcome(await agent.adopt("it"))
    *numbers, last = (printed + out).split()
    assert (last, status) == (b"end", ExitStatus(0))
    assert numbers == [b"%d" % number for number in range(len(numbers))]
    assert printed, "it was handed over while it wrote"


async def test_a_full_pipe_stays_full(next_host: OpenHost, tmp_path: Path) -> None:
    data = random.Random(5).randbytes(1 << 20)
    (tmp_path / "data").write_bytes(data)
    async with next_host() as agent:
        process = await agent.spawn(spec("cat", str(tmp_path / "data")))
        await trio.sleep(0.1)  # the window is used up by now, mostly
        first = await release(process)
    async with next_host() as agent:
        out, _, status = await outcome(await agent.adopt("it"))
    assert (first + out, status) == (data, ExitStatus(0))


async def test_it_may_end_meanwhile(next_host: OpenHost, program: Running, tmp_path: Path) -> None:
    async with next_host() as agent:
        wait = UNTIL.format(tmp_path / "go")
        process = await agent.spawn(spec("sh", "-c", f"exec 2>&-; echo early; {wait}; echo late; exit 7"))
        await process.receive_output()
        await release(process)
    (tmp_path / "go").touch()
    await until(lambda: not psutil.Process(program.program.pid).children())
    async with next_host() as agent:
        assert await outcome(await agent.adopt("it")) == (b"late\n", b"", ExitStatus(7))
        with pytest.raises(ProcessSpawnError):
            await agent.adopt("it")


async def test_a_group_that_lingers_is_waited_for(next_host: OpenHost, tmp_path: Path) -> None:
    async with next_host() as agent:
        wait = UNTIL.format(tmp_path / "go")
        process = await agent.spawn(spec("sh", "-c", f"({wait}; echo last) & exit 3", linger=30))
        await release(process)
        await trio.sleep(0.1)
        process = await agent.adopt("it")
        await release(process)
    (tmp_path / "go").touch()
    async with next_host() as agent:
        assert await outcome(await agent.adopt("it")) == (b"last\n", b"", ExitStatus(3))


async def test_it_is_a_process_like_any_other_again(next_host: OpenHost) -> None:
    async with next_host() as agent:
        trapped = await agent.spawn(
            spec("sh", "-c", "trap 'echo caught; exit 5' USR1; echo on; while :; do sleep 0.01; done 2>/dev/null")
        )
        other = await agent.spawn(spec("sleep", "1000"))
        assert await trapped.receive_output() == (1, b"on\n")
        await release(trapped, "one")
        await release(other, "two")
    async with next_host() as agent:
        trapped, other = await agent.adopt("one"), await agent.adopt("two")
        await trapped.signal(signal.SIGUSR1)
        assert await outcome(trapped) == (b"caught\n", b"", ExitStatus(5))
        await other.kill()
        assert await other.wait() == ExitStatus(0, signal.SIGKILL)


async def test_one_that_was_not_released_ends_with_its_epoch(next_host: OpenHost, program: Running) -> None:
    async with next_host() as agent:
        await agent.spawn(spec("sleep", "1001"))
        await release(await agent.spawn(spec("sleep", "1002")))
    async with next_host() as agent:
        kept = await agent.adopt("it")
        await until(lambda: len(psutil.Process(program.program.pid).children()) == 1)
        await kept.kill()


async def test_released_by_one_that_has_ended(next_host: OpenHost) -> None:
    async with next_host() as agent:
        process = await agent.spawn(spec("sh", "-c", "echo done"))
        await process.wait()
        assert not await process.release("it")
        assert not process.released
        assert await process.receive_output() == (1, b"done\n")
        assert await process.receive_output() is None


async def test_what_nobody_knows(next_host: OpenHost) -> None:
    async with next_host() as agent:
        with pytest.raises(ProcessSpawnError, match="no process is kept under that key") as caught:
            await agent.adopt("nobody")
        assert caught.value.details["errno"] == errno.ESRCH
        for key in ("", "x" * 65, "ü" * 33, "a\0b"):
            with pytest.raises(UsageError):
                await agent.adopt(key)
        process = await agent.spawn(spec("sleep", "1000"))
        await release(process, "x" * 64)
        await (await agent.adopt("x" * 64)).kill()


@pytest.mark.parametrize(
    "payload",
    [
        encode(Kind.RELEASE),
        encode(Kind.RELEASE, [(Tag.KEY, "")]),
        encode(Kind.RELEASE, [(Tag.KEY, "x" * 65)]),
        encode(Kind.RELEASE, [(Tag.KEY, b"a\0b")]),
        encode(Kind.RELEASE, [(Tag.KEY, "taken")]),
        encode(Kind.RELEASE, [(Tag.KEY, "twice"), (Tag.SIGNAL, 65)]),
    ],
)
async def test_a_malformed_release_is_a_violation(agent_program: Path, payload: bytes) -> None:
    async with raw_host(agent_program) as (host, running):
        await host.hello(1)
        await begin_and_release(host, 1, "taken")
        await host.send(opening(2, wire.encode_process(spec("sleep", "1000"))))
        await started(host, 2)
        await host.send(message(2, payload))
        await host.hello(2)  # it answers nothing else any more
        await until(lambda: len(psutil.Process(running.program.pid).children()) == 1)


async def test_input_and_terminals_cannot_be_handed_over(agent_program: Path) -> None:
    for changes in ({"stdin": True}, {"tty": TerminalSize(rows=24, cols=80)}):
        async with raw_host(agent_program) as (host, running):
            await host.hello(1)
            await host.send(opening(1, wire.encode_process(spec("sleep", "1000", **changes))))
            await started(host, 1)
            await host.send(message(1, wire.encode_release("it")))
            await host.hello(2)
            agent = psutil.Process(running.program.pid)
            await until(lambda agent=agent: not agent.children())  # type: ignore[misc]


async def test_released_before_it_has_begun(agent_program: Path) -> None:
    """Nobody of ours does that; STARTED and a failure are then the next host's to hear."""
    async with raw_host(agent_program) as (host, _):
        await host.hello(1)
        await host.send(
            opening(1, wire.encode_process(spec("true"))) + message(1, wire.encode_release("begins")),
            opening(2, wire.encode_process(spec("no-such-program"))) + message(2, wire.encode_release("fails")),
        )
        await host.collect(1)
        await host.hello(2)
        await host.send(opening(1, wire.encode_adopt("begins")))
        seen = [wire.decode_process_message(p) for kind, p in await host.collect(1) if kind == frames.MESSAGE]
        assert isinstance(seen[0], wire.Started)
        assert seen[1:] == [ExitStatus(0)]
        await host.send(opening(2, wire.encode_adopt("fails")))
        seen = [wire.decode_process_message(p) for kind, p in await host.collect(2) if kind == frames.MESSAGE]
        (failure,) = seen
        assert isinstance(failure, wire.SpawnFailure)
        assert failure.errno in (errno.ESRCH, errno.ENOENT)


async def test_a_malformed_adoption_is_a_violation_and_a_critical_tag_is_refused(agent_program: Path) -> None:
    async with raw_host(agent_program) as (host, _):
        await host.hello(1)
        await begin_and_release(host, 1, "it")
        for epoch, fields in ((2, []), (3, [(Tag.KEY, b"a\0")])):
            await host.send(opening(2, encode(Kind.ADOPT, fields)))
            await host.hello(epoch)
            await host.send(opening(1, wire.encode_process(spec("true"))))
            await host.collect(1)
        critical = b"\x01\x80\0\0\0\0"
        await host.send(opening(2, wire.encode_adopt("it") + critical))
        (refusal, _) = await host.collect(2)
        assert wire.decode_process_message(refusal[1]) == wire.SpawnFailure(
            errno.EOPNOTSUPP, "the host asks for what this agent does not know"
        )
        await host.send(opening(3, wire.encode_adopt("it")))
        assert isinstance(await started(host, 3), wire.Started)


async def test_they_end_with_the_sandbox(agent_program: Path) -> None:
    for asked in (True, False):
        async with raw_host(agent_program) as (host, running):
            await host.hello(1)
            await host.send(opening(1, wire.encode_configure(ports=(), dead_man=0)))
            await host.receive()
            pid = await begin_and_release(host, 2, "it", "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
            kept = psutil.Process(pid)
            if asked:
                await host.send(message(1, wire.encode_power_off(0.1)))
            else:
                running.link.shutdown(socket.SHUT_WR)
            with trio.fail_after(30):
                assert await running.ended() == (0 if asked else 3)
            assert not still_running([kept], within=20)


async def started(host: RawHost, stream: int) -> wire.Started:
    """The first message of a stream."""
    while (frame := await host.receive()).stream != stream:
        pass
    decoded = wire.decode_process_message(frame.payload)
    assert isinstance(decoded, wire.Started)
    return decoded


async def begin_and_release(host: RawHost, stream: int, key: str, *argv: str) -> int:
    """Start a process and let it go; its id."""
    await host.send(opening(stream, wire.encode_process(spec(*(argv or ("sleep", "1000"))))))
    pid = (await started(host, stream)).pid
    await host.send(message(stream, wire.encode_release(key)))
    await host.collect(stream)
    await host.send(frames.encode_close(stream, ""))
    return pid


# --- connections ---


@pytest.fixture
async def connect(anyio_backend: str) -> AsyncGenerator[Connect]:
    """Connects to a port of loopback; closed at the end."""
    async with AsyncExitStack() as stack:

        async def connect_to(port: int) -> trio.SocketStream:
            return await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", port))

        yield connect_to


async def shout(stream: trio.abc.Stream) -> None:
    """Answers in capitals until the end."""
    while data := await stream.receive_some():
        await stream.send_all(bytes(data).upper())


async def talk(stream: trio.SocketStream, text: bytes) -> bytes:
    with trio.fail_after(30):
        await stream.send_all(text)
        return bytes(await stream.receive_some())


async def test_who_comes_between_hosts_waits_for_the_next(
    next_host: OpenHost, connect: Connect, free_port: Callable[[], int]
) -> None:
    kept, dropped = free_port(), free_port()
    async with next_host(tunnel_ports=[kept, dropped], serve_tunnel=shout) as agent:
        open_before = await connect(kept)
        assert await talk(open_before, b"one") == b"ONE"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.hold_connections, 30)
            with trio.fail_after(25):
                assert await open_before.receive_some() == b"", "it was cut"
            comes_back = await connect(kept)
            await comes_back.send_all(b"two")
        at_the_other = await connect(dropped)
    between = await connect(kept)
    await between.send_all(b"three")
    async with next_host(tunnel_ports=[kept], serve_tunnel=shout):
        with trio.fail_after(30):
            assert await comes_back.receive_some() == b"TWO"
            assert await between.receive_some() == b"THREE"
            with suppress(trio.BrokenResourceError):
                assert await at_the_other.receive_some() == b"", "nobody listens there any more"
        assert await talk(await connect(kept), b"four") == b"FOUR"
        with pytest.raises(OSError, match="connect"):
            await connect(dropped)


async def test_connections_that_are_held_can_be_let_in_again(
    next_host: OpenHost, connect: Connect, free_port: Callable[[], int]
) -> None:
    port = free_port()
    async with next_host(tunnel_ports=[port], serve_tunnel=shout) as agent:
        with trio.fail_after(25):
            await agent.hold_connections(60)  # nobody was there
        waiting = await connect(port)
        await waiting.send_all(b"x")
        with trio.move_on_after(0.2) as scope:
            await waiting.receive_some()
        assert scope.cancelled_caught
        agent.let_in_connections()
        with trio.fail_after(30):
            assert await waiting.receive_some() == b"X"
        assert await talk(await connect(port), b"y") == b"Y"


async def test_who_does_not_come_back_is_not_waited_for_for_long(
    next_host: OpenHost, connect: Connect, free_port: Callable[[], int]
) -> None:
    port = free_port()
    async with next_host(tunnel_ports=[port], serve_tunnel=shout) as agent:
        streams = [await connect(port) for _ in range(2)]
        for stream in streams:
            assert await talk(stream, b"x") == b"X"
        begun = trio.current_time()
        await agent.hold_connections(0.5)
        assert 0.4 < trio.current_time() - begun < 30
