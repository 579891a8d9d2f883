"""Running a program as a process group that never outlives its scope."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from iii_core.errors import SpawnError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence
    from pathlib import Path

REAP_SECONDS = 5


@asynccontextmanager
async def running(
    command: Sequence[str], *, env: Mapping[str, str], cwd: Path, install: str, pass_fds: Sequence[int] = ()
) -> AsyncGenerator[trio.Process, None]:
    """A program with pipes for its standard streams; its whole group is killed when the scope is left.

    It has the descriptors ``pass_fds`` under the same numbers. Raises `SpawnError` if it is not there; ``install`` says
    what to install then.
    """
    try:
        process = await trio.lowlevel.open_process(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=dict(env),
            cwd=cwd,
            pass_fds=pass_fds,
        )
    except FileNotFoundError:
        raise SpawnError(f"{command[0]} is not installed", hint=f"install {install}") from None
    try:
        yield process
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)  # it leads its group until it is reaped, so the id is still its own
        for stream in (process.stdin, process.stdout, process.stderr):
            assert stream is not None
            with trio.CancelScope(shield=True, deadline=trio.current_time() + REAP_SECONDS):
                await stream.aclose()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + REAP_SECONDS):
            await process.wait()


async def read_bounded(stream: trio.abc.ReceiveStream, most: int) -> bytes:
    """All that comes, or the first ``most`` + 1 bytes of it; the rest is read and dropped."""
    kept = bytearray()
    async for data in stream:
        kept += data[: most + 1 - len(kept)]
    return bytes(kept)
