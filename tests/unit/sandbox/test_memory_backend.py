"""What tests can do with `MemoryBackend` beyond what every backend does."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from iii_core.errors import BootFailed, ProcessSpawnError
from iii_core.records import OpenContext, ProbeResult
from iii_core.sandbox.agent import Agent, AgentProcess, ExitStatus, ProcessSpec, TerminalSize, open_agent
from iii_core.sandbox.host import open_inline_host
from iii_core.sandbox.port import Limits, RootImage, SandboxDriver, SandboxSpec
from iii_core.testing.memory_backend import MemoryBackend, MemoryProcess, Program

PORT = 49134


def spec_in(folder: Path) -> SandboxSpec:
    return SandboxSpec(
        id="one",
        root=RootImage(path=folder / "none", format="squashfs", digest=""),
        writable_dir=folder / "layer",
        console=folder / "console",
        hostname="one",
        limits=Limits(memory_mib=64),
    )


@pytest.fixture
def context(tmp_path: Path) -> OpenContext:
    return OpenContext(state_dir=tmp_path, runtime_dir=tmp_path, home=tmp_path, environ=dict(os.environ))


@asynccontextmanager
async def booted(backend: MemoryBackend, context: OpenContext) -> AsyncGenerator[SandboxDriver]:
    async with open_inline_host({"memory": backend.record()}, context) as host:
        driver = await host.driver("memory")
        await driver.create(spec_in(context.state_dir))
        await driver.start("one")
        yield driver


@asynccontextmanager
async def agent_with(context: OpenContext, **programs: Program) -> AsyncGenerator[Agent]:
    async def reply(stream: trio.abc.Stream) -> None:
        assert isinstance(stream, trio.abc.HalfCloseableStream)
        while data := await stream.receive_some():
            await stream.send_all(data.upper())
        await stream.send_eof()

    async with booted(MemoryBackend(programs), context) as driver:
        link = await driver.link("one")
        link.setblocking(False)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(link))
        async with open_agent(stream, tunnel_ports=[PORT], serve_tunnel=reply) as agent:
            yield agent


def spec(*argv: str, **changes: object) -> ProcessSpec:
    return ProcessSpec(**{"argv": argv, "env": {"NAME": "value"}, **changes})  # type: ignore[arg-type]


async def output(process: AgentProcess) -> tuple[bytes, bytes]:
    printed = {1: b"", 2: b""}
    while (piece := await process.receive_output()) is not None:
        printed[piece[0]] += piece[1]
    return printed[1], printed[2]


async def test_a_program_has_arguments_environment_streams_and_status(context: OpenContext) -> None:
    async def program(process: MemoryProcess) -> int:
        said = await process.read()
        assert await process.read() == b""
        await process.write(f"{process.argv[1]} {process.env['NAME']} {process.cwd} {said.decode()}".encode())
        await process.write(b"oops", channel=2)
        return 7

    async with agent_with(context, program=program) as agent:
        process = await agent.spawn(spec("/usr/bin/program", "word", stdin=True))
        await process.send_stdin(b"input")
        await process.close_stdin()
        assert await output(process) == (b"word value /workspace input", b"oops")
        assert await process.wait() == ExitStatus(7)


async def test_a_failing_program_prints_its_traceback(context: OpenContext) -> None:
    async def program(process: MemoryProcess) -> int:
        raise ValueError("of the test")

    async with agent_with(context, program=program) as agent:
        process = await agent.spawn(spec("program"))
        out, err = await output(process)
        assert out == b""
        assert b"ValueError: of the test" in err
        assert await process.wait() == ExitStatus(1)


async def test_unknown_programs_do_not_start(context: OpenContext) -> None:
    async with agent_with(context) as agent:
        with pytest.raises(ProcessSpawnError) as caught:
            await agent.spawn(spec("/bin/nonsense"))
        assert caught.value.exit_code_like == 127


async def test_signals_kill_unless_they_are_trapped(context: OpenContext) -> None:
    async def stubborn(process: MemoryProcess) -> int:
        asked = process.trap(signal.SIGTERM)
        await process.write(b"ready")
        await asked.wait()
        await process.write(b", asked")
        return 3

    async with agent_with(context, stubborn=stubborn) as agent:
        process = await agent.spawn(spec("sleep", "60"))
        await process.signal(signal.SIGTERM)
        assert await process.wait() == ExitStatus(0, signal.SIGTERM)
        process = await agent.spawn(spec("stubborn"))
        assert await process.receive_output() == (1, b"ready")
        await process.signal(signal.SIGTERM)
        assert await output(process) == (b", asked", b"")
        assert await process.wait() == ExitStatus(3)


async def test_kill_drops_output_and_reports_the_end(context: OpenContext) -> None:
    async with agent_with(context) as agent:
        process = await agent.spawn(spec("cat", stdin=True))
        await process.kill()
        assert await process.wait() == ExitStatus(0, signal.SIGKILL)


async def test_a_terminal_has_one_channel_and_a_size(context: OpenContext) -> None:
    async def program(process: MemoryProcess) -> int:
        assert process.size == TerminalSize(rows=10, cols=20)
        await process.write(b"error", channel=2)
        await process.read()
        await process.write(str(process.size).encode())
        return 0

    async with agent_with(context, program=program) as agent:
        process = await agent.spawn(spec("program", tty=TerminalSize(rows=10, cols=20)))
        assert await process.receive_output() == (1, b"error")
        await process.resize(TerminalSize(rows=1, cols=2))
        await process.send_stdin(b"\n")
        assert await output(process) == (b"TerminalSize(rows=1, cols=2)", b"")


async def test_programs_reach_the_tunnel(context: OpenContext) -> None:
    async def program(process: MemoryProcess) -> int:
        with pytest.raises(ConnectionRefusedError):
            await process.connect(PORT + 1)
        stream = await process.connect(PORT)
        await stream.send_all(b"hello")
        await stream.send_eof()
        while data := await stream.receive_some():
            await process.write(data)
        await stream.aclose()
        return 0

    async with agent_with(context, program=program) as agent:
        process = await agent.spawn(spec("program"))
        assert await output(process) == (b"HELLO", b"")
        assert await process.wait() == ExitStatus(0)


async def test_power_off_asks_programs_first(context: OpenContext) -> None:
    ended: list[str] = []

    async def polite(process: MemoryProcess) -> int:
        await process.trap(signal.SIGTERM).wait()
        ended.append("polite")
        return 0

    async with agent_with(context, polite=polite) as agent:
        await agent.spawn(spec("polite"))
        with trio.fail_after(20):
            await agent.power_off(20)
    assert ended == ["polite"]


async def test_boot_error(context: OpenContext) -> None:
    backend = MemoryBackend()
    backend.boot_error = "no disk"
    with pytest.raises(BootFailed) as caught:
        async with booted(backend, context):
            pass
    assert caught.value.details["console"] == "no disk"
    assert "no disk" in (context.state_dir / "console").read_text(encoding="utf-8")


async def test_crash_and_unenforced_limits(context: OpenContext) -> None:
    backend = MemoryBackend()
    async with booted(backend, context) as driver:
        assert (await driver.state("one")).unenforced == ("memory limit 64",)
        backend.crash("one", "exit 42")
        event = await driver.events().receive()
        assert (event.id, event.exit) == ("one", "exit 42")
        assert "booting" in event.console_tail
        with pytest.raises(KeyError):
            backend.crash("one")


async def test_probe(context: OpenContext) -> None:
    backend = MemoryBackend()
    backend.probe_result = ProbeResult(ok=False, reason="of the test")
    async with open_inline_host({"memory": backend.record()}, context) as host:
        assert await host.probe("memory") == backend.probe_result
