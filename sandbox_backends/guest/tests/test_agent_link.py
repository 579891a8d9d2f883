"""The real agent's end of the link: beginnings, ends, and hosts that do not behave."""

from __future__ import annotations

import os
import random
import signal
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import trio
from iii_sandbox_guest import agent_path

from iii_core.link import frames
from iii_core.sandbox import agent_wire as wire
from iii_core.sandbox.agent import ExitStatus
from iii_core.sandbox.agent_wire import Kind, Tag, encode
from iiitools.processes import still_running

from .agentkit import spec, until
from .conftest import Running, start_program
from .rawlink import RawHost, message, opening

CONFIGURE = wire.encode_configure(ports=(), dead_man=0, clock_ns=1, entropy=b"x")  # a host's clock is left alone
TRUE = wire.encode_process(spec("true"))
DEAD_MAN = 2.0  # a busy machine may keep a host from speaking for a second


@asynccontextmanager
async def raw_host(program: Path, *before: str) -> AsyncGenerator[tuple[RawHost, Running]]:
    running = start_program(program, before=before)
    try:
        async with running.stream() as stream:
            yield RawHost(stream), running
    finally:
        with trio.move_on_after(10, shield=True):
            await running.end()


async def exits_with(running: Running, status: int) -> None:
    with trio.fail_after(30):
        assert await running.ended() == status


async def still_works(host: RawHost, stream: int) -> None:
    """The agent starts a program."""
    await host.send(opening(stream, TRUE))
    seen = await host.collect(stream)
    decoded = [wire.decode_process_message(payload) for kind, payload in seen if kind == frames.MESSAGE]
    assert isinstance(decoded[0], wire.Started)
    assert decoded[1:] == [ExitStatus(0)]
    await host.send(frames.encode_close(stream, ""))


# --- beginnings ---


async def test_hello_says_who_and_answers_whom(agent_program: Path) -> None:
    async with raw_host(agent_program) as (host, _):
        first = await host.hello(11)
        again = await host.hello(11)
        assert (first.peer_epoch, first.version) == (11, 1)
        assert again == first
        await still_works(host, 1)


async def test_what_comes_before_hello_is_skipped(agent_program: Path) -> None:
    planted = frames.Hello(epoch=99, max_message=2000, max_streams=1, data_window=40000, message_window=2000).encode()
    garbage = random.Random(3).randbytes(200_000)
    async with raw_host(agent_program) as (host, _):
        await host.hello(before=garbage + planted + garbage[:100] + planted[:40] + frames.RESYNC)
        await still_works(host, 1)


@pytest.mark.parametrize("cut", [1, 8, 9, 30, 5000])
async def test_a_half_frame_is_overcome(agent_program: Path, cut: int) -> None:
    """The link changes hands within a frame, while a process of the first host runs."""
    async with raw_host(agent_program) as (host, running):
        await host.hello(1)
        await host.send(opening(1, wire.encode_process(spec("sleep", "1000"))))
        assert (await host.receive()).type == frames.MESSAGE
        (child,) = psutil.Process(running.program.pid).children()
        half = frames.encode_data(1, 0, b"x" * 10_000)[:cut]
        hello = await host.hello(2, before=half + frames.RESYNC)
        assert hello.peer_epoch == 2
        await still_works(host, 1)
        await trio.to_thread.run_sync(child.wait, 30)


async def test_another_version_is_answered_and_not_served(agent_program: Path) -> None:
    async with raw_host(agent_program) as (host, _):
        assert (await host.hello(1, version=2)).version == 1
        await host.send(opening(1, TRUE))
        assert (await host.hello(2)).peer_epoch == 2
        await still_works(host, 1)


async def test_unknown_arguments_are_ignored_and_a_missing_link_is_named(agent_program: Path) -> None:
    running = start_program(agent_program, arguments=["nokaslr", "--future", "x=y"])
    async with running.stream() as stream:
        await RawHost(stream).hello()
    await exits_with(running, 3)
    for arguments in ([], ["--fd"], ["--fd", "x"], ["--fd", "77"]):
        done = await trio.run_process([agent_program, *arguments], check=False, capture_stderr=True)
        assert done.returncode == 2
        assert done.stderr.startswith(b"iii-agent: ")


# --- ends ---


async def test_the_end_of_the_link_ends_everything(agent_program: Path) -> None:
    async with raw_host(agent_program) as (host, running):
        await host.hello()
        await host.send(
            opening(
                1, wire.encode_process(spec("sh", "-c", "trap '' TERM; sleep 1000 & setsid sleep 1000 & sleep 1000"))
            )
        )
        assert (await host.receive()).type == frames.MESSAGE
        await until(lambda: len(psutil.Process(running.program.pid).children(recursive=True)) == 4)
        children = psutil.Process(running.program.pid).children(recursive=True)
        await host.stream.aclose()
        await exits_with(running, 3)
        assert not still_running(children)


async def test_silence_powers_off(agent_program: Path) -> None:
    async with raw_host(agent_program) as (host, running):
        await host.hello()
        await host.send(opening(1, wire.encode_configure(ports=(), dead_man=DEAD_MAN)))
        await host.send(opening(2, wire.encode_process(spec("sh", "-c", "trap '' TERM; echo; sleep 1000"))))
        begun = trio.current_time()
        while (last := trio.current_time()) - begun < DEAD_MAN * 1.5:
            await host.send(frames.encode_token(frames.PING, 1))
            await trio.sleep(0.1)
        assert running.program.poll() is None
        await exits_with(running, 3)
        assert trio.current_time() - last > DEAD_MAN / 2, "it was silence that ended it"


async def test_a_signal_powers_off_in_order(agent_program: Path) -> None:
    async with raw_host(agent_program) as (host, running):
        await host.hello()
        script = "trap 'echo saved; exit 0' TERM; echo ready; while :; do sleep 0.01; done 2>/dev/null"
        await host.send(opening(1, wire.encode_process(spec("sh", "-c", script))))
        seen = b""
        while b"ready" not in seen:
            seen += (await host.receive()).payload
        running.program.send_signal(signal.SIGTERM)
        last = await host.collect(1)
        assert (frames.DATA, b"\x01saved\n") in last
        await host.send(frames.encode_close(1, ""))
        await exits_with(running, 0)


# --- what the agent keeps to itself ---


async def test_the_link_is_not_handed_on(agent_program: Path) -> None:
    async with raw_host(agent_program) as (host, _):
        await host.hello()
        await host.send(opening(1, wire.encode_process(spec("sh", "-c", "ls -l /proc/self/fd | grep -c socket"))))
        assert (frames.DATA, b"\x010\n") in await host.collect(1)


async def test_its_memory_is_out_of_reach_of_its_own_user() -> None:
    """What is not dumpable belongs to root in /proc (proc(5))."""
    user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups") if os.geteuid() == 0 else ()
    async with raw_host(agent_path(), *user) as (host, running):
        await host.hello()
        process = psutil.Process(running.program.pid)
        assert process.uids().real != 0
        assert (await trio.Path(f"/proc/{process.pid}/mem").stat()).st_uid == 0


# --- hosts that do not behave: the agent drops everything and waits for a new beginning ---


def field(tag: int, value: bytes) -> bytes:
    return struct.pack("<HI", tag, len(value)) + value


VIOLATIONS = {
    "zero length": bytes(9),
    "length beyond all bounds": b"\xff\xff\xff\xff\x07\1\0\0\0",
    "unknown type": struct.pack("<IBI", 5, 99, 1),
    "ping on a stream": struct.pack("<IBIQ", 13, frames.PING, 1, 0),
    "data on stream 0": struct.pack("<IBIBB", 7, frames.DATA, 0, 1, 1),
    "empty data": struct.pack("<IBIB", 6, frames.DATA, 1, 0),
    "data for nobody": frames.encode_data(5, 0, b"x"),
    "close of nobody": frames.encode_close(5, ""),
    "open twice": opening(2, CONFIGURE) + opening(2, CONFIGURE),
    "open backwards": opening(5, TRUE) + opening(4, TRUE),
    "open without a kind": opening(2, b""),
    "too many streams": b"".join(opening(2 + n, wire.encode_process(spec("sleep", "9"))) for n in range(257)),
    "part before data": frames.encode_frame(frames.PART, 2, b"x") + frames.encode_data(2, 0, b"x"),
    "part for another": frames.encode_frame(frames.PART, 2, b"x") + opening(3, b"y"),
    "endless message": b"".join(frames.encode_frame(frames.PART, 2, bytes(60_000)) for _ in range(20)),
    "channel 8": opening(2, TRUE) + frames.encode_data(2, 8, b"x"),
    "input on stdout": opening(2, TRUE) + frames.encode_data(2, 1, b"x"),
    "data after eof": opening(2, wire.encode_process(spec("sleep", "9")))
    + frames.encode_frame(frames.EOF, 2, b"\0")
    + frames.encode_data(2, 0, b"x"),
    "eof twice": opening(2, wire.encode_process(spec("sleep", "9"))) + frames.encode_frame(frames.EOF, 2, b"\0") * 2,
    "more than granted": opening(2, wire.encode_process(spec("sleep", "9", stdin=True)))
    + frames.encode_data(2, 0, bytes(16384)) * 20,
    "credit without end": opening(2, wire.encode_process(spec("sleep", "9")))
    + frames.encode_credit(2, 2**31 - 1, 0) * 2,
    "no argv": opening(2, encode(Kind.PROCESS)),
    "argv with NUL": opening(2, bytes([Kind.PROCESS]) + field(1, b"a\0b")),
    "cut field": opening(2, bytes([Kind.PROCESS]) + field(1, b"true")[:-1]),
    "cut field header": opening(2, bytes([Kind.PROCESS]) + b"\1\0\1"),
    "rows without columns": opening(2, encode(Kind.PROCESS, [(Tag.ARG, "true"), (Tag.ROWS, 5)])),
    "number of 4 bytes": opening(2, bytes([Kind.PROCESS]) + field(1, b"true") + field(9, b"\1\0\0\0")),
    "port 0": opening(2, encode(Kind.CONTROL, [(Tag.PORT, 0)])),
    "port 65536": opening(2, encode(Kind.CONTROL, [(Tag.PORT, 65536)])),
    "signal 0": opening(2, wire.encode_process(spec("sleep", "9")))
    + message(2, encode(Kind.SIGNAL, [(Tag.SIGNAL, 0)])),
    "signal 65": opening(2, wire.encode_process(spec("sleep", "9")))
    + message(2, encode(Kind.SIGNAL, [(Tag.SIGNAL, 65)])),
    "empty message": opening(2, wire.encode_process(spec("sleep", "9"))) + message(2, b""),
    "tunnel without id": opening(2, encode(Kind.TUNNEL)),
    "data on the control stream": opening(2, CONFIGURE) + frames.encode_data(2, 0, b"x"),
}


@pytest.mark.parametrize("violation", VIOLATIONS.values(), ids=VIOLATIONS.keys())
async def test_a_violation_drops_all_streams(agent_program: Path, violation: bytes) -> None:
    async with raw_host(agent_program) as (host, running):
        await host.hello(1)
        await host.send(opening(1, wire.encode_process(spec("sleep", "1000"))))
        assert (await host.receive()).type == frames.MESSAGE
        await host.send(violation)
        await host.hello(2, before=frames.RESYNC)
        await still_works(host, 1)
        await until(lambda: not psutil.Process(running.program.pid).children())


REFUSALS = {
    "unknown kind of stream": b"\x63",
    "unknown critical tag, control": encode(Kind.CONTROL) + field(0x8001, b""),
    "tunnel for nobody": wire.encode_tunnel(12345),
}


@pytest.mark.parametrize("payload", REFUSALS.values(), ids=REFUSALS.keys())
async def test_what_it_does_not_know_is_refused_in_words(agent_program: Path, payload: bytes) -> None:
    async with raw_host(agent_program) as (host, _):
        await host.hello()
        await host.send(opening(1, payload))
        ((kind, reason),) = await host.collect(1)
        assert kind == frames.CLOSE
        assert len(reason) > 10
        await host.send(frames.encode_close(1, ""))
        await still_works(host, 2)


async def test_a_process_with_an_unknown_critical_tag_is_a_spawn_error(agent_program: Path) -> None:
    async with raw_host(agent_program) as (host, _):
        await host.hello()
        await host.send(opening(1, TRUE + field(0x8001, b"x")), opening(2, TRUE + field(0x7001, b"x")))
        (_, payload), _ = await host.collect(1)
        failure = wire.decode_process_message(payload)
        assert isinstance(failure, wire.SpawnFailure)
        assert failure.errno == 95


async def test_unknown_messages_and_a_second_control_stream_do_no_harm(agent_program: Path) -> None:
    async with raw_host(agent_program) as (host, _):
        await host.hello()
        await host.send(opening(1, CONFIGURE), message(1, b"\xc8"), opening(2, CONFIGURE))
        assert (await host.receive()).type == frames.MESSAGE
        assert (await host.receive()).type == frames.CLOSE
        await host.send(frames.encode_close(2, ""))
        await still_works(host, 3)


async def test_random_bytes_and_mutated_conversations(sanitized_agent: Path) -> None:
    """Whatever a host says, the agent neither dies nor loses its senses."""
    rng = random.Random(5)
    sample = (
        opening(1, wire.encode_configure(ports=[], dead_man=0, hostname=None))
        + opening(2, wire.encode_process(spec("cat", stdin=True, tty=wire.TerminalSize(rows=3, cols=4))))
        + frames.encode_data(2, 0, b"hello\n")
        + message(2, wire.encode_resize(wire.TerminalSize(rows=3, cols=9)))
        + frames.encode_credit(2, 100, 100)
        + frames.encode_token(frames.PING, 1)
        + frames.encode_frame(frames.EOF, 2, b"\0")
        + opening(3, b"\x02" + field(1, b"true") + field(3, b"/"))
        + message(2, wire.encode_signal(2))
        + frames.encode_close(2, "bye")
    )
    async with raw_host(sanitized_agent) as (host, running), trio.open_nursery() as nursery:

        async def talk() -> None:
            for epoch in range(1, 300):
                mutated = bytearray(sample)
                for _ in range(rng.randrange(1, 6)):
                    at = rng.randrange(len(mutated))
                    match rng.randrange(3):
                        case 0:
                            mutated[at] = rng.randrange(256)
                        case 1:
                            del mutated[at : at + rng.randrange(1, 30)]
                        case _:
                            mutated[at:at] = rng.randbytes(rng.randrange(1, 20))
                await host.hello(epoch, before=frames.RESYNC)
                await host.send(bytes(mutated))
            await host.hello(1000, before=frames.RESYNC)
            await still_works(host, 1)
            nursery.cancel_scope.cancel()

        nursery.start_soon(talk)
        await running.ended()
        raise AssertionError(f"the agent ended with {running.program.returncode}")


# --- as an init ---

INIT = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc", "--net")


async def test_as_an_init_it_reaps_orphans_and_ends_everything(agent_program: Path) -> None:
    async with raw_host(agent_program, *INIT) as (host, running):
        await host.hello()
        await host.send(opening(1, wire.encode_configure(ports=[49134], dead_man=0)))
        ready = wire.decode_control_message((await host.receive()).payload)
        assert isinstance(ready, wire.Ready)
        assert (ready.pid, ready.listen_errors) == (1, ())
        orphan = "(setsid sh -c 'sleep 0.1234' &); while pgrep -f '^sleep 0.1234' >/dev/null; do sleep 0.02; done; "
        orphan += "while ps -eo stat= | grep -q Z; do sleep 0.02; done; ip -o link show lo | grep -c ,UP"
        await host.send(opening(2, wire.encode_process(spec("sh", "-c", orphan))))
        output = b"".join(payload[1:] for kind, payload in await host.collect(2) if kind == frames.DATA)
        assert output == b"1\n"
        await host.send(frames.encode_close(2, ""))
        stubborn = "trap '' TERM; setsid sh -c \"trap '' TERM; sleep 1000\" & echo ready; sleep 1000"
        await host.send(opening(3, wire.encode_process(spec("sh", "-c", stubborn))))
        while (await host.receive()).type != frames.DATA:
            pass
        await until(lambda: len(psutil.Process(running.program.pid).children(recursive=True)) == 5)
        descendants = psutil.Process(running.program.pid).children(recursive=True)
        await host.send(message(1, wire.encode_power_off(0.2)))
        assert (await host.collect(3))[-2:] == [
            (frames.MESSAGE, encode(Kind.EXIT, [(Tag.SIGNAL, 9)])),
            (frames.CLOSE, b""),
        ]
        await host.send(frames.encode_close(3, ""))
        await exits_with(running, 0)
        assert not still_running(descendants)
