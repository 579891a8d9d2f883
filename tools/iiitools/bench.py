"""What a benchmark gives, and how two things are timed side by side.

A benchmark is a module of ``benchmarks/`` with a function ``measure() -> list[Row]``. A row is a *ratio* against a
named reference that was measured in the same run: absolute times of a shared machine say little.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Literal

import msgspec


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One comparison.

    Attributes:
        name: what is compared, such as ``iii --help``.
        unit: of ``ours`` and ``reference``, such as ``ms`` or ``calls/s``.
        ours: our figure (a median).
        reference: the other one's.
        reference_name: what the other one is, with its version.
        aim: the ratio ours/reference that we want to reach.
        better: whether a lower or a higher ratio is better.
        conditions: load, sizes and CPU pinning that the figures hold for.
    """

    name: str
    unit: str
    ours: float
    reference: float
    reference_name: str
    aim: float
    better: Literal["lower", "higher"]
    conditions: str

    @property
    def ratio(self) -> float:
        """ours / reference."""
        return self.ours / self.reference

    @property
    def met(self) -> bool:
        """Whether the aim is reached."""
        return self.ratio <= self.aim if self.better == "lower" else self.ratio >= self.aim


@contextmanager
def pinned(*cpus: int) -> Generator[str]:
    """Keep this process, and what it starts, on some CPUs; gives the words for `Row.conditions`."""
    before = os.sched_getaffinity(0)
    wanted = before & set(cpus) or before
    os.sched_setaffinity(0, wanted)
    try:
        yield f"pinned to CPU {', '.join(map(str, sorted(wanted)))}"
    finally:
        os.sched_setaffinity(0, before)


def median_times(
    ours: Callable[[], object], reference: Callable[[], object], *, rounds: int = 15, warmup: int = 2
) -> tuple[float, float]:
    """Median wall-clock seconds of both, called in turns so that a change of load hits both alike."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(warmup + rounds):
        for call, samples in zip((ours, reference), times, strict=True):
            start = time.perf_counter()
            call()
            if number >= warmup:
                samples.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])
