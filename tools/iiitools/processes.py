"""Whether processes that a test has ended are gone."""

from __future__ import annotations

import time
from collections.abc import Iterable

import psutil


def still_running(processes: Iterable[psutil.Process], *, within: float = 0) -> list[psutil.Process]:
    """Those that have not ended after at most ``within`` seconds.

    A zombie has ended: an orphan is pid 1's to reap, and a container's pid 1 may never do so (`psutil.wait_procs`
    waits for that).
    """
    deadline = time.monotonic() + within
    while (alive := [process for process in processes if _runs(process)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return alive


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
