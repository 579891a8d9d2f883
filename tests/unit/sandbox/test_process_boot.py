"""A sandbox that is one process: what starts, ends early, stays silent or is not there; and what is left of it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from iii_core.errors import BackendUnavailable
from iii_core.records import OpenContext
from iii_core.sandbox.console import Console
from iii_core.sandbox.host_processes import ProcessId
from iii_core.sandbox.hostclient import PROCESS_FOLDER
from iii_core.sandbox.launcher import LaunchFailed
from iii_core.sandbox.process_boot import ProcessBoot, launch_process

ANSWERS = "import os, sys, time; os.read(int(sys.argv[1]), 100); os.write(int(sys.argv[1]), b'x'); time.sleep(60)"

PARENT = """
import os, sys, time
link = int(sys.argv[1])
if os.fork():
    time.sleep(60)
os.read(link, 100)
os.write(link, b"x")
os.read(link, 100)
"""


class Bench:
    def __init__(self, context: OpenContext) -> None:
        self.context = context
        self.console = Console(context.state_dir / "console")

    async def launch(self, nursery: trio.Nursery, *command: str) -> ProcessBoot:
        """``command`` gets the descriptor's number as its last argument."""
        return await launch_process(
            lambda link: [*command, str(link)],
            self.console,
            nursery=nursery,
            context=self.context,
            env={"PATH": os.environ["PATH"]},
        )

    def records(self) -> list[str]:
        folder = self.context.runtime_dir / PROCESS_FOLDER
        return [path.name for path in folder.iterdir()] if folder.exists() else []


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(OpenContext(state_dir=tmp_path, runtime_dir=tmp_path / "run", home=tmp_path, environ={}))
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    yield made
    made.console.close()
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors
    assert made.records() == []


async def test_it_runs_until_it_is_killed(bench: Bench) -> None:
    async with trio.open_nursery() as nursery:
        boot = await bench.launch(nursery, sys.executable, "-c", ANSWERS)
        assert boot.link.recv(1) == b"x", "the answer is left to be read"
        assert boot.pid is not None
        assert ProcessId.of(boot.pid) is not None
        (record,) = bench.records()
        assert record.startswith(f"{boot.pid}.")
        await boot.kill()
        assert boot.exit == "signal 9"
        await boot.kill()
        boot.link.close()


async def test_it_has_ended_when_all_of_it_has(bench: Bench) -> None:
    async with trio.open_nursery() as nursery:
        boot = await bench.launch(nursery, sys.executable, "-c", PARENT)
        assert boot.pid is not None
        os.kill(boot.pid, signal.SIGKILL)
        await trio.sleep(0.2)
        assert not boot.ended.is_set(), "its child runs on"
        boot.link.send(b"end")
        await boot.ended.wait()
        boot.link.close()


async def test_what_ends_before_it_answers_has_failed(bench: Bench) -> None:
    async with trio.open_nursery() as nursery:
        with pytest.raises(LaunchFailed, match="exit 3"):
            await bench.launch(nursery, "sh", "-c", "echo no image >&2; exit 3", "sh")
    assert bench.console.tail() == "no image"


async def test_a_cancelled_launch_leaves_nothing(bench: Bench) -> None:
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(0.3) as limit:
            await bench.launch(nursery, "sh", "-c", "exec sleep 60", "sh")
        assert limit.cancelled_caught
        assert bench.records() == []


async def test_a_program_that_is_not_there(bench: Bench) -> None:
    async with trio.open_nursery() as nursery:
        with pytest.raises(BackendUnavailable, match="cannot start no-such-program"):
            await bench.launch(nursery, "no-such-program")
