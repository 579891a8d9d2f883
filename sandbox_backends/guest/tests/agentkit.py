"""What the agent's tests have in common."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

import trio

from iii_core.sandbox.agent import Agent, AgentProcess, ExitStatus, ProcessSpec

ENV = {"PATH": "/usr/bin:/bin"}
StartAgent: TypeAlias = Callable[..., AbstractAsyncContextManager[Agent]]


def spec(*argv: str, **changes: Any) -> ProcessSpec:
    return ProcessSpec(**{"argv": argv, "env": ENV, "cwd": "/", **changes})


async def outcome(process: AgentProcess) -> tuple[bytes, bytes, ExitStatus]:
    """All the rest of stdout and stderr, and the end."""
    collected = {1: bytearray(), 2: bytearray()}
    while (output := await process.receive_output()) is not None:
        collected[output[0]] += output[1]
    return bytes(collected[1]), bytes(collected[2]), await process.wait()


async def run(agent: Agent, *argv: str, **changes: Any) -> tuple[bytes, bytes, ExitStatus]:
    return await outcome(await agent.spawn(spec(*argv, **changes)))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something about other processes, which nothing tells of; fails after 30 s."""
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.005)
