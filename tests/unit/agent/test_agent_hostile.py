"""The host against guests that are not what they should be: scripted agents over a stream in memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, TypeAlias

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from iii_core.errors import BootFailed, BootTimeout, LinkClosed, LinkError, ProcessSpawnError, leading_error
from iii_core.link import frames
from iii_core.link.frames import Decoder, Frame, Hello
from iii_core.sandbox.agent import Agent, AgentTimeouts, ExitStatus, ProcessSpec, open_agent
from iii_core.sandbox.agent_wire import Kind, Tag, encode

HELLO = Hello(epoch=9, max_message=1 << 16, max_streams=256, data_window=1 << 16, message_window=1 << 16)
READY = encode(Kind.READY, [(Tag.VERSION, 1), (Tag.FEATURES, 0), (Tag.PID, 1)])
STARTED = encode(Kind.STARTED, [(Tag.PID, 5)])
EXIT = encode(Kind.EXIT, [(Tag.CODE, 3)])
SPEC = ProcessSpec(argv=["x"], env={})
TIMEOUTS = AgentTimeouts(boot=0.3, spawn=0.3)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Everything here is in memory, so time may jump: what takes how long says nothing of the machine."""
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0.005)}


class Guest:
    """The agent's end, by hand."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.decoder = Decoder(max_message=1 << 20)

    async def send(self, *encoded: bytes) -> None:
        await self.stream.send_all(b"".join(encoded))

    async def next(self, kind: int) -> Frame:
        while True:
            while (frame := self.decoder.next_frame()) is None:
                self.decoder.feed(await self.stream.receive_some() or b"")
            if frame.type == kind:
                return frame

    async def hello(self) -> None:
        frame = await self.next(frames.HELLO)
        await self.send(replace(HELLO, peer_epoch=frames.decode_epochs(frame.payload)[0]).encode())

    async def ready(self) -> None:
        await self.hello()
        await self.next(frames.OPEN)
        await self.send(message(1, READY))


Script: TypeAlias = Callable[[Guest], Awaitable[None]]


def message(stream: int, payload: bytes) -> bytes:
    return frames.encode_message(frames.MESSAGE, stream, payload)


async def no_tunnel(_: trio.abc.Stream) -> None:
    raise AssertionError


async def play(script: Script, guest: Guest) -> None:
    with suppress(trio.BrokenResourceError):  # the host has given it up
        await script(guest)


@asynccontextmanager
async def agent_of(script: Script, timeouts: AgentTimeouts = TIMEOUTS) -> AsyncGenerator[Agent]:
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(play, script, Guest(theirs))
        try:
            async with open_agent(ours, tunnel_ports=[], serve_tunnel=no_tunnel, timeouts=timeouts) as agent:
                yield agent
        finally:
            nursery.cancel_scope.cancel()


async def boot_error(script: Script) -> BaseException:
    """What a boot with such a guest raises."""
    try:
        async with agent_of(script):
            raise AssertionError("it booted")
    except BaseExceptionGroup as group:  # of the nursery in agent_of
        return leading_error(group)


async def test_silence_is_a_boot_timeout() -> None:
    async def silent(_: Guest) -> None:
        await trio.sleep_forever()

    async def hello_only(guest: Guest) -> None:
        await guest.hello()
        await trio.sleep_forever()

    async def babbles(guest: Guest) -> None:
        while True:
            await guest.send(b"Booting Linux...\r\n")
            await trio.sleep(0.01)

    for script in (silent, hello_only, babbles):
        assert isinstance(await boot_error(script), BootTimeout)


async def test_an_end_while_booting_is_a_closed_link() -> None:
    async def leaves(guest: Guest) -> None:
        await guest.stream.aclose()

    async def leaves_later(guest: Guest) -> None:
        await guest.hello()
        await guest.stream.aclose()

    for script in (leaves, leaves_later):
        assert isinstance(await boot_error(script), LinkClosed)


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (message(1, encode(Kind.READY, [(Tag.VERSION, 2), (Tag.FEATURES, 0), (Tag.PID, 1)])), LinkError),
        (message(1, encode(Kind.READY)), LinkError),
        (message(1, STARTED), LinkError),
        (message(1, b""), LinkError),
        (message(2, READY), LinkError),
        (frames.encode_data(1, 0, b"x"), LinkError),
        (frames.encode_close(1, "\x1b[2J go away"), LinkError),
        (frames.encode_frame(frames.OPEN, 2, b""), LinkError),
        (message(1, READY + b"\x13\0\2\0\0\0no"), BootFailed),
    ],
)
async def test_what_comes_instead_of_ready(first: bytes, expected: type[Exception]) -> None:
    async def script(guest: Guest) -> None:
        await guest.hello()
        await guest.next(frames.OPEN)
        await guest.send(first)
        await trio.sleep_forever()

    error = await boot_error(script)
    assert type(error) is expected
    assert "\x1b" not in str(error)


@pytest.mark.parametrize(
    "said",
    [
        message(2, EXIT),
        message(2, STARTED) * 2,
        message(2, STARTED + b"\0"),
        message(2, STARTED) + message(2, encode(Kind.SPAWN_ERROR, [(Tag.ERRNO, 2)])),
        message(2, STARTED) + message(2, EXIT) * 2,
        message(2, STARTED) + message(2, READY),
        message(2, STARTED) + frames.encode_data(2, 0, b"stdin?"),
        message(2, STARTED) + frames.encode_data(2, 5, b"?"),
        message(2, STARTED) + frames.encode_close(2, "no exit"),
        frames.encode_data(77, 1, b"x"),
        bytes(9),
    ],
)
async def test_a_process_out_of_order_ends_the_link(said: bytes) -> None:
    async def script(guest: Guest) -> None:
        await guest.ready()
        await guest.next(frames.OPEN)
        await guest.send(said)
        await trio.sleep_forever()

    async def use(agent: Agent) -> None:
        process = await agent.spawn(SPEC)
        while await process.receive_output() is not None:
            pass

    async with agent_of(script) as agent:
        with trio.fail_after(5):
            with pytest.raises(LinkError):
                await use(agent)
            await agent.wait_closed()
        with pytest.raises(LinkError):
            await agent.spawn(SPEC)


async def test_output_that_waits_is_given_before_the_end_and_wait_needs_no_reader() -> None:
    async def script(guest: Guest) -> None:
        await guest.ready()
        await guest.next(frames.OPEN)
        await guest.send(message(2, STARTED), frames.encode_data(2, 1, b"out"), message(2, EXIT))
        await guest.send(frames.encode_close(2, ""))
        await trio.sleep_forever()

    async with agent_of(script) as agent:
        process = await agent.spawn(SPEC)
        assert await process.wait() == ExitStatus(3)
        assert await process.receive_output() == (1, b"out")
        assert [await process.receive_output() for _ in range(2)] == [None, None]


async def test_a_program_that_never_starts_is_given_up_and_closed() -> None:
    closed = trio.Event()

    async def script(guest: Guest) -> None:
        await guest.ready()
        await guest.next(frames.CLOSE)
        closed.set()
        await trio.sleep_forever()

    async with agent_of(script) as agent:
        with pytest.raises(ProcessSpawnError, match="longer than"):
            await agent.spawn(SPEC)
        with trio.fail_after(5):
            await closed.wait()


async def test_the_end_of_the_guest_reaches_everybody_who_waits() -> None:
    async def script(guest: Guest) -> None:
        await guest.ready()
        await guest.next(frames.OPEN)
        await guest.send(message(2, STARTED))
        await trio.sleep(0.05)
        await guest.stream.aclose()

    async with agent_of(script) as agent:
        process = await agent.spawn(SPEC)
        async with trio.open_nursery() as nursery:

            async def expect_closed(wait: Callable[[], Awaitable[object]]) -> None:
                with pytest.raises(LinkClosed):
                    await wait()

            nursery.start_soon(expect_closed, process.wait)
            nursery.start_soon(expect_closed, process.receive_output)
        await agent.power_off(1)


async def test_connections_announced_without_end_open_a_bounded_number_of_tunnels() -> None:
    opened = 0

    async def script(guest: Guest) -> None:
        nonlocal opened
        await guest.ready()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(announce, guest)
            while True:
                await guest.next(frames.OPEN)
                opened += 1

    async def announce(guest: Guest) -> None:
        for number in range(1, 300):  # within the window of 16 KiB
            await guest.send(message(1, encode(Kind.CONNECTION, [(Tag.CONNECTION_ID, number), (Tag.PORT, 80)])))

    async def hold(_: trio.abc.Stream) -> None:
        await trio.sleep_forever()

    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(script, Guest(theirs))
        async with open_agent(ours, tunnel_ports=[80], serve_tunnel=hold, timeouts=TIMEOUTS):
            await trio.testing.wait_all_tasks_blocked(0.05)
        nursery.cancel_scope.cancel()
    assert opened == 200


@given(st.lists(st.binary(min_size=1, max_size=80), max_size=6), st.booleans())
@settings(max_examples=120, deadline=None)
def test_no_bytes_of_a_guest_do_more_than_end_the_link(pieces: list[bytes], started: bool) -> None:
    async def script(guest: Guest) -> None:
        await guest.ready()
        await guest.next(frames.OPEN)
        if started:
            await guest.send(message(2, STARTED))
        for piece in pieces:
            await guest.send(piece)
        await guest.stream.aclose()

    async def main() -> None:
        async with agent_of(script, AgentTimeouts(boot=5, spawn=5)) as agent:
            with trio.fail_after(5):
                try:
                    process = await agent.spawn(SPEC)
                    while await process.receive_output() is not None:
                        pass
                    await process.wait()
                except (LinkError, ProcessSpawnError):
                    pass
                await agent.wait_closed()

    trio.run(main)
