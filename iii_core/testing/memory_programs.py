"""Programs of `MemoryBackend` that the sandbox conformance kit runs, and a few that tests like to have."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping

import trio

from iii_core.testing.memory_agent import MemoryProcess, Program
from iii_core.testing.sandbox_harness import Commands


async def write(process: MemoryProcess) -> int | None:
    """``write PATH TEXT``."""
    path = process.path(process.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(process.argv[2], encoding="utf-8")
    await trio.lowlevel.checkpoint()
    return 0


async def read(process: MemoryProcess) -> int | None:
    """``read PATH`` prints the file."""
    try:
        await process.write(process.path(process.argv[1]).read_bytes())
    except FileNotFoundError as error:
        await process.write(f"{error.strerror}\n".encode(), channel=2)
        return 1
    return 0


async def echo(process: MemoryProcess) -> int | None:
    """``echo WORD…`` prints its arguments."""
    await process.write((" ".join(process.argv[1:]) + "\n").encode())
    return 0


async def cat(process: MemoryProcess) -> int | None:
    """Prints its input."""
    while data := await process.read():
        await process.write(data)
    return 0


async def sleep(process: MemoryProcess) -> int | None:
    """``sleep SECONDS``."""
    await trio.sleep(float(process.argv[1]))
    return 0


async def user_id(process: MemoryProcess) -> int | None:
    """Prints the user id."""
    await process.write(f"{process.uid}\n".encode())
    return 0


async def connect(process: MemoryProcess) -> int | None:
    """``connect ADDRESS PORT``: there is no network in memory."""
    await process.write(b"Network is unreachable\n", channel=2)
    return 1


async def draw(process: MemoryProcess) -> int | None:
    """Prints random bytes."""
    await process.write(secrets.token_hex().encode())
    return 0


async def clock(process: MemoryProcess) -> int | None:
    """Prints the time of day."""
    await process.write(str(time.time()).encode())
    return 0


async def succeed(_: MemoryProcess) -> int | None:
    """``true``."""
    await trio.lowlevel.checkpoint()
    return 0


PROGRAMS: Mapping[str, Program] = {
    "write": write,
    "read": read,
    "echo": echo,
    "cat": cat,
    "sleep": sleep,
    "id": user_id,
    "connect": connect,
    "true": succeed,
    "random": draw,
    "clock": clock,
}

COMMANDS = Commands(
    write=lambda path, text: ("write", path, text),
    read=lambda path: ("read", path),
    user_id=("id",),
    sleep=lambda seconds: ("sleep", str(seconds)),
    random=("random",),
    clock=("clock",),
    connect=lambda address, port: ("connect", address, str(port)),
)
"""What to tell the conformance kit; `MemoryBackend` keeps no limits, so it has no commands for them."""
