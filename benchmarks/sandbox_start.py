"""From the order to start a sandbox to its agent's HELLO, in namespaces.

The image is the example worker for Python (Debian, 60 MB), merged as for any worker; the agent, the writable layer and
all rules are the real ones. The reference is bubblewrap alone on a mount of the same image: ``bwrap … true``, from
start to exit. What is done once per image (its mount) and once per engine (the helper's start) is done before.
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import trio
from iii_registry_oci.layers.limits import Limits
from iii_registry_oci.rootimage import build_root
from iii_sandbox_bubblewrap.driver import open_driver
from iii_sandbox_bubblewrap.policy import Settings
from images import read_layers

from iii_core.records import OpenContext
from iii_core.sandbox.port import RootImage, SandboxDriver, SandboxSpec
from iii_core.testing.sandbox_harness import agent_of
from iiitools.bench import Row
from iiitools.workerimages import build_math_worker

ROUNDS = 15
WARMUP = 2
BUDGET_MS = 50.0


def measure() -> list[Row]:
    """Against a budget, and against ``bwrap`` alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        layers = read_layers(folder / "layout", build_math_worker(folder / "layout", tag="image"))
        image = folder / "root.squashfs"
        trio.run(partial(build_root, layers, image, user="", limits=Limits(), environ=os.environ, moved=lambda _: None))
        with mounted(image, folder / "mount") as root:
            ours, reference = trio.run(compare, image, root, folder)
    conditions = f"{len(os.sched_getaffinity(0))} CPUs, image mounted before, as root"
    version = subprocess.run(["bwrap", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return [
        row(ours, BUDGET_MS, "the budget", 1.0, conditions),
        row(ours, reference, f"{version}: … true", 4.0, conditions),
    ]


def row(ours: float, reference: float, reference_name: str, aim: float, conditions: str) -> Row:
    """Times in milliseconds."""
    return Row(
        name="bubblewrap: start to HELLO",
        unit="ms",
        ours=ours,
        reference=reference,
        reference_name=reference_name,
        aim=aim,
        better="lower",
        conditions=conditions,
    )


@contextmanager
def mounted(image: Path, where: Path) -> Generator[Path]:
    """The image as the backend mounts it as root."""
    where.mkdir()
    subprocess.run(["mount", "-t", "squashfs", "-o", "loop,ro,nodev,nosuid", image, where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)


async def compare(image: Path, root: Path, folder: Path) -> tuple[float, float]:
    """Median milliseconds of both, in turns."""
    runtime = folder / "run"
    runtime.mkdir(mode=0o700)
    context = OpenContext(
        state_dir=folder / "state", runtime_dir=runtime, home=folder / "home", environ=dict(os.environ)
    )
    numbers = itertools.count()
    ours: list[float] = []
    reference: list[float] = []
    async with open_driver(Settings(), context) as driver:
        for _ in range(WARMUP + ROUNDS):
            ours.append(await start(driver, image, folder, f"box-{next(numbers)}"))
            reference.append(await bare(root))
    return statistics.median(ours[WARMUP:]), statistics.median(reference[WARMUP:])


async def start(driver: SandboxDriver, image: Path, folder: Path, sandbox_id: str) -> float:
    """One sandbox up to its agent's HELLO; its end is not measured."""
    spec = SandboxSpec(
        id=sandbox_id,
        root=RootImage(path=image, format="squashfs", digest="sha256:" + "0" * 64),
        writable_dir=folder / f"{sandbox_id}.layer",
        console=folder / f"{sandbox_id}.console",
        hostname="bench",
    )
    begin = time.perf_counter()
    await driver.create(spec)
    await driver.start(spec.id)
    async with agent_of(driver, spec.id):
        taken = time.perf_counter() - begin
    await driver.destroy(spec.id, keep_writable=False)
    return taken * 1000


async def bare(root: Path) -> float:
    """bubblewrap with the same kinds of namespaces, and a program that does nothing."""
    command = ["bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", str(root), "/", "--proc", "/proc"]
    command += ["--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/run", "--clearenv", "/bin/true"]
    begin = time.perf_counter()
    await trio.run_process(command)
    return (time.perf_counter() - begin) * 1000
