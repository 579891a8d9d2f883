"""Engine and sandbox host killed at one stroke: the guest ends by itself, and the next engine clears up."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from pathlib import Path

import pytest

from iii_core.testing.sandbox_harness import run_well

from .vmkit import HERE, HOME, Bench, python

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
DEAD_MAN = 8  # a busy machine may take seconds to kill both, and to let a guest speak before


async def test_engine_and_host_killed(bench: Bench, kernel: Path, tmp_path: Path) -> None:
    with bench.nothing_remains():
        engine = start_engine(bench, tmp_path)
        try:
            assert engine.stdout is not None
            found = json.loads(engine.stdout.readline())
            qemu = os.pidfd_open(found["qemu"])
            both = (engine.pid, found["host"])
            for number in (signal.SIGSTOP, signal.SIGKILL):  # neither sees the other's end
                for pid in both:
                    os.kill(pid, number)
        finally:
            end(engine)
        assert not select.select([qemu], [], [], 0)[0], "nobody was left to end it"
        assert select.select([qemu], [], [], 60 + DEAD_MAN)[0], "the guest goes on for ever"
        os.close(qemu)
        async with bench.sandbox() as (_, agent):
            assert (await run_well(agent, ("/bin/id", "-u"))).strip() == "0"


def start_engine(bench: Bench, folder: Path) -> subprocess.Popen[str]:
    arguments = (HERE / "enginerunner.py", bench.image.path, HOME, folder, str(DEAD_MAN))
    return subprocess.Popen(python(*arguments), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)


def end(engine: subprocess.Popen[str]) -> None:
    engine.kill()
    engine.wait()
    assert engine.stdout is not None
    engine.stdout.close()
