"""Processes, by the real agent."""

from __future__ import annotations

import pytest

from iii_core.errors import ProcessSpawnError
from iii_core.sandbox.agent import Agent, AgentProcess, ExitStatus, ProcessSpec
from typing import Any, Callable

ENV = {"PATH": "/usr/bin:/bin"}


def spec(*argv: str, **changes: Any) -> ProcessSpec:
    return ProcessSpec(**{"argv": argv, "env": ENV, "cwd": "/", **changes})


async def outcome(process: AgentProcess) -> tuple[bytes, bytes, ExitStatus]:
    """Everything on stdout and stderr, and the end."""
    collected = {1: b"", 2: b""}
    while (output := await process.receive_output()) is not None:
        collected[output[0]] += output[1]
    return collected[1], collected[2], await process.wait()


async def run(agent: Agent, *argv: str, **changes: Any) -> tuple[bytes, bytes, ExitStatus]:
    return await outcome(await agent.spawn(spec(*argv, **changes)))


async def test_output_and_exit_code(start_agent: Callable[..., Any]) -> None:
    async with start_agent() as agent:
        out, err, status = await run(agent, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (out, err, status) == (b"out\n", b"err\n", ExitStatus(7))


async def test_a_program_that_is_not_there(start_agent: Callable[..., Any]) -> None:
    async with start_agent() as agent:
        with pytest.raises(ProcessSpawnError, match="no-such-program") as caught:
            await agent.spawn(spec("no-such-program"))
    assert caught.value.exit_code_like == 127
