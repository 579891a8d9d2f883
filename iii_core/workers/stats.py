"""What managed workers use right now: their agents' words, and what this machine sees of them."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from iii_core.errors import IIIError, WorkerNotRunning

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from iii_core.sandbox.agent import SandboxStats
    from iii_core.workers.plan import WorkerPlan
    from iii_core.workers.supervisor import Supervisor

ANSWER_TIMEOUT: Final = 5.0
MEASURE_TIMEOUT: Final = 3.0
_MIB: Final = 1 << 20


async def stats_of(supervisors: Sequence[Supervisor]) -> list[dict[str, Any]]:
    """One row per worker, in order, asked at once; takes at most about `ANSWER_TIMEOUT`.

    ``at`` (seconds of some clock) and ``cpu_seconds`` make a rate with those of another call. Numbers are None where
    the worker does not run, or ``note`` says why. ``memory`` is what its processes have for themselves, ``disk`` what
    its writable layers take on this machine, both in bytes; ``network`` is what went through its connections to the
    engine and its published ports since it was started.
    """
    rows: dict[int, dict[str, Any]] = {}

    async def collect(number: int, supervisor: Supervisor) -> None:
        rows[number] = await _row(supervisor)

    async with trio.open_nursery() as nursery:
        for number, supervisor in enumerate(supervisors):
            nursery.start_soon(collect, number, supervisor)
    return [rows[number] for number in range(len(supervisors))]


async def _row(supervisor: Supervisor) -> dict[str, Any]:
    backend = supervisor.state.backend
    layers = supervisor.places.writable
    row: dict[str, Any] = {
        "name": supervisor.spec.name,
        "status": supervisor.phase.value,
        "backend": backend.name if backend else None,
        "isolation": backend.isolation.value if backend else None,
        **dict.fromkeys(("at", "cpu_seconds", "memory", "memory_limit", "processes", "disk_limit", "network", "note")),
        "disk": await trio.to_thread.run_sync(partial(allocated, layers, time.monotonic() + MEASURE_TIMEOUT)),
    }
    try:
        agent, plan = supervisor.agent()
        with trio.fail_after(ANSWER_TIMEOUT):
            stats = await agent.stats()
    except WorkerNotRunning:
        return row
    except trio.TooSlowError:
        return row | {"note": f"its agent has not answered within {ANSWER_TIMEOUT:g} s"}
    except IIIError as error:
        return row | {"note": error.message}
    row |= _used(stats) | {"memory_limit": _memory_limit(supervisor, plan)}
    return row | {"network": {"received": agent.traffic.sent, "sent": agent.traffic.received}}  # as the worker sees it


def _used(stats: SandboxStats) -> dict[str, Any]:
    return {
        "at": trio.current_time(),
        "cpu_seconds": stats.cpu_ns / 1e9,
        "memory": stats.memory,
        "processes": stats.processes,
        "disk_limit": stats.disk_size,
    }


def _memory_limit(supervisor: Supervisor, plan: WorkerPlan) -> int | None:
    """In bytes; None where there is none, or none that is enforced."""
    sandbox = supervisor.state.sandbox
    unenforced = sandbox is not None and any("memory" in limit.casefold() for limit in sandbox.unenforced)
    mib = None if unenforced else plan.limits.memory_mib
    return None if mib is None else mib * _MIB


def allocated(folder: Path, deadline: float) -> int | None:
    """Bytes that a tree takes on the disk, or None if counting is not done by ``deadline`` (``time.monotonic``).

    Never follows links; counts a file with several names once; leaves out what may not be looked at. A worker writes
    to the tree meanwhile, and chooses how large it is.
    """
    total, known, waiting = 0, set[tuple[int, int]](), [os.fspath(folder)]
    while waiting:
        try:
            entries = os.scandir(waiting.pop())
        except OSError:
            continue
        with entries:
            for entry in entries:
                if time.monotonic() > deadline:
                    return None
                try:
                    found = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                if found.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                    if (found.st_dev, found.st_ino) in known:
                        continue
                    known.add((found.st_dev, found.st_ino))
                total += found.st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
    return total
