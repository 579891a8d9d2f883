"""Sees, and removes, what a program that was started here left behind: processes and mounts."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import psutil

from iiitools.processes import still_running

SETTLE_SECONDS = 3.0


def remove(folder: Path) -> list[str]:
    """Kill all descendants of this process and unmount what is mounted below ``folder``; returns what there was.

    Processes get a moment to end by themselves first: one that its parent has just killed is no leftover.
    """
    found = [f"left running: {name}" for name in kill_descendants()]
    for mount in mounts_below(folder):
        found.append(f"left mounted: {mount}")
        subprocess.run(["umount", "--lazy", mount], capture_output=True)
    return found


def kill_descendants() -> list[str]:
    """Descendants that did not end within `SETTLE_SECONDS`, by command line; they are dead afterwards."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while (alive := still_running(psutil.Process().children(recursive=True))) and time.monotonic() < deadline:
        psutil.wait_procs(alive, timeout=0.1)  # and look again: those that end may have started others
    names: list[str] = []
    for process in alive:
        try:
            names.append(f"{process.pid} {' '.join(process.cmdline())[:200]}")
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=SETTLE_SECONDS)
    return names


def mounts_below(folder: Path) -> list[str]:
    """Mount points below a folder in this mount namespace, the innermost first."""
    prefix = f"{folder.resolve()}{os.sep}"
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted((point for point in points if point.startswith(prefix)), reverse=True)
