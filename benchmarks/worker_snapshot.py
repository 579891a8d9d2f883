"""From the order to start a worker to its first answer: from its snapshot, against a cold start.

The worker is the example for Python with the published SDK, in an emulated virtual machine (TCG), whatever the host can
do. A whole engine with its sandbox host runs in this process; both ways take turns. The second row is what it costs to
take a snapshot, as the time in which the worker cannot be called, against the same cold start.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from iii_sandbox_guest import fetch_kernel
from worker_add import free_port

from iii_core.app.application import Application, open_application
from iii_core.host import PluginHost
from iii_core.project.locate import locate_project
from iii_core.workers.operations import READY_TIMEOUT
from iii_core.workers.supervisor import Supervisor
from iiitools.bench import Row
from iiitools.workerimages import build_math_worker

KERNELS = Path(__file__).resolve().parents[1] / "build" / "guest"
NAME = "math-worker"
FUNCTION = "math::add"
ROUNDS = 5
AIM = 0.2
CONFIG = """
sandbox: {{backend: libvirt, backends: {{libvirt: {{accelerator: tcg}}}}}}
workers:
  - name: iii-worker-manager
    config: {{port: {port}}}
  - name: math-worker
    image: oci:{layout}:1.0
"""


def measure() -> list[Row]:
    """Warm start and snapshot against cold start."""
    KERNELS.mkdir(parents=True, exist_ok=True)
    trio.run(fetch_kernel, KERNELS)
    with tempfile.TemporaryDirectory() as name:
        warm, cold, gap, size = trio.run(compare, Path(name))
    command = ["qemu-system-x86_64", "--version"]
    version = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[3]
    conditions = f"{len(os.sched_getaffinity(0))} CPUs, QEMU {version}, TCG, state of {size / 1e6:.0f} MB"
    return [
        row("worker snapshot to callable", warm, cold, AIM, conditions),
        row("worker not callable while it is saved", gap, cold, 0.5, conditions),
    ]


def row(name: str, ours: float, cold: float, aim: float, conditions: str) -> Row:
    """Times in seconds."""
    return Row(
        name=name,
        unit="s",
        ours=ours,
        reference=cold,
        reference_name="cold start to callable",
        aim=aim,
        better="lower",
        conditions=conditions,
    )


async def compare(folder: Path) -> tuple[float, float, float, int]:
    """Median seconds of warm starts, cold starts and snapshots, and the size of one in bytes."""
    async with running_project(folder) as application:
        supervisor = application.manager.get(NAME)
        await supervisor.ready(READY_TIMEOUT)
        warm: list[float] = []
        cold: list[float] = []
        gaps: list[float] = []
        size = 0
        for _ in range(ROUNDS):
            cold.append(await seconds_to_answer(application, supervisor, cold=True))
            gap, size = await seconds_without_answer(application, supervisor)
            gaps.append(gap)
            warm.append(await seconds_to_answer(application, supervisor, cold=False))
        return statistics.median(warm), statistics.median(cold), statistics.median(gaps), size


@asynccontextmanager
async def running_project(folder: Path) -> AsyncGenerator[Application]:
    """An engine whose one worker is about to start."""
    build_math_worker(folder / NAME, tag="1.0")
    (folder / "home").mkdir()
    (folder / "home" / "kernels").symlink_to(KERNELS / "kernels")
    (folder / "run").mkdir(mode=0o700)
    (folder / "config.yaml").write_text(CONFIG.format(port=free_port(), layout=folder / NAME), encoding="utf-8")
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "III_HOME": str(folder / "home"),
        "XDG_RUNTIME_DIR": str(folder / "run"),
        "LANG": "C.UTF-8",
    }
    project = locate_project(environ=environ, cwd=folder)
    async with open_application(project, PluginHost.create(environ=environ)) as application:
        yield application


async def seconds_to_answer(application: Application, supervisor: Supervisor, *, cold: bool) -> float:
    """Of one start, to the first answer; stopping before is not measured."""
    supervisor.request_stop()
    await supervisor.stopped()
    start = time.perf_counter()
    supervisor.start(cold=cold)
    await answer(application)
    taken = time.perf_counter() - start
    assert supervisor.state.warm is not cold, "it was not started as it should be"
    return taken


async def seconds_without_answer(application: Application, supervisor: Supervisor) -> tuple[float, int]:
    """Of one snapshot, from the cut of its connection to its next answer; and the snapshot's size."""
    start = time.perf_counter()
    size = (await supervisor.snapshot())["size"]
    await answer(application)
    return time.perf_counter() - start, size


async def answer(application: Application) -> None:
    """Wait until the worker offers its function, and call it."""
    with trio.fail_after(READY_TIMEOUT):
        await application.engine.wait_for_worker(lambda worker: FUNCTION in worker.functions)
        assert await application.engine.trigger(FUNCTION, {"a": 2, "b": 3}) == {"sum": 5}
