"""The real agent over a socket pair, on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from iii_sandbox_guest import agent_path

from iii_core.sandbox.agent import Agent, AgentTimeouts, ServeTunnel, open_agent
from iiitools.ports import reserved_port

from .agentkit import StartAgent
from .machinekit import fetched_kernel, make_root_image

SOURCE = Path(__file__).parents[1] / "agent"
SANITIZER_OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}


@pytest.fixture(scope="session")
def root_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For machines of this package's tests; that there is a kernel for them is seen to as well."""
    fetched_kernel()
    return make_root_image(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="session")
def build_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("agent")


@pytest.fixture(scope="session")
def sanitized_agent(build_dir: Path) -> Path:
    """The agent built with ASan and UBSan, which end it at the first mistake."""
    program = build_dir / "agent-sanitized"
    subprocess.run(["make", "-s", "-C", SOURCE, f"BUILD={build_dir}", program], check=True, stdin=subprocess.DEVNULL)
    return program


@pytest.fixture(scope="session", params=["release", "sanitized"])
def agent_program(request: pytest.FixtureRequest) -> Path:
    return agent_path() if request.param == "release" else request.getfixturevalue("sanitized_agent")


@dataclass(frozen=True, slots=True)
class Running:
    """An agent program that runs, and our end of its link (which `open_agent` takes over)."""

    program: subprocess.Popen[bytes]
    link: socket.socket

    def stream(self) -> trio.SocketStream:
        return trio.SocketStream(trio.socket.from_stdlib_socket(self.link))

    async def ended(self) -> int:
        return await trio.to_thread.run_sync(self.program.wait, abandon_on_cancel=True)

    async def end(self) -> None:
        """The end of the link is the agent's end, and takes along what it started."""
        self.link.close()
        with trio.move_on_after(25) as scope:
            await self.ended()
        self.program.kill()
        self.program.wait()
        assert not scope.cancelled_caught


def start_program(program: Path, *, before: Sequence[str] = (), arguments: Sequence[str] = ()) -> Running:
    ours, theirs = socket.socketpair()
    with theirs:
        argv = [*before, str(program), *arguments, "--fd", str(theirs.fileno())]
        process = subprocess.Popen(
            argv, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env={**os.environ, **SANITIZER_OPTIONS}
        )
    return Running(process, ours)


async def refuse_tunnel(_: trio.abc.Stream) -> None:
    raise AssertionError("nobody connects in this test")


@pytest.fixture
def free_port() -> Iterator[Callable[[], int]]:
    """Gives ports of loopback that are the test's alone."""
    with ExitStack() as reserved:
        yield lambda: reserved.enter_context(reserved_port())


@pytest.fixture
def start_agent(agent_program: Path) -> StartAgent:
    """``async with start_agent(...) as agent``: ends with a check that the agent ended well."""

    @asynccontextmanager
    async def start(
        *,
        tunnel_ports: Sequence[int] = (),
        serve_tunnel: ServeTunnel = refuse_tunnel,
        timeouts: AgentTimeouts | None = None,
        before: Sequence[str] = (),
    ) -> AsyncGenerator[Agent]:
        running = start_program(agent_program, before=before)
        try:
            async with open_agent(
                running.stream(), tunnel_ports=tunnel_ports, serve_tunnel=serve_tunnel, timeouts=timeouts
            ) as agent:
                yield agent
                with trio.fail_after(30):
                    await agent.power_off(1)
            with trio.fail_after(30):
                assert await running.ended() == 0
        finally:
            with trio.move_on_after(30, shield=True):
                await running.end()

    return start
