"""What the engine, its sandbox host and its helpers cost while nobody calls anything.

The sandboxes hold the example worker for Python (the published SDK), connected and registered. Counted is the CPU time
of the processes outside them; that of the sandboxes (with virtual machines: QEMU) is named in the conditions. The
reference is the time of one core.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio
from iii_sandbox_guest import fetch_kernel

from iiitools.bench import Row
from iiitools.workerimages import build_math_worker

III = Path(sys.executable).with_name("iii")
KERNELS = Path(__file__).resolve().parents[1] / "build" / "guest"
SETTLE = 10.0
WINDOW = 60.0
START = 240.0
AIM = 0.01  # of a core
TICKS = os.sysconf("SC_CLK_TCK")
OURS = {"iii_core.sandbox.hostproc": "sandbox host", "iii_sandbox_bubblewrap.keeper": "keeper"}


def measure() -> list[Row]:
    """Ten sandboxes of namespaces, and three virtual machines."""
    KERNELS.mkdir(parents=True, exist_ok=True)
    trio.run(fetch_kernel, KERNELS)
    return [idle("bubblewrap", 10), idle("libvirt", 3)]


def idle(backend: str, count: int) -> Row:
    """That many idle sandboxes of a backend."""
    with tempfile.TemporaryDirectory(prefix="iii-idle-") as name:
        project = Path(name)
        with engine(project, backend, count) as pid:
            wait_running(project, count)
            time.sleep(SETTLE)
            begin, before = time.monotonic(), cpu_seconds(pid)
            time.sleep(WINDOW)
            window, after = time.monotonic() - begin, cpu_seconds(pid)
    spent = {part: seconds - before.get(part, 0.0) for part, seconds in after.items()}
    inside = spent.pop("sandboxes")
    parts = ", ".join(f"{part} {seconds:.2f} s" for part, seconds in spent.items())
    return Row(
        name=f"idle: {count} in {backend}",
        unit="s",
        ours=sum(spent.values()),
        reference=window,
        reference_name="one core",
        aim=AIM,
        better="lower",
        conditions=f"{count} python SDK workers, {parts}; the sandboxes themselves {inside:.2f} s",
    )


@contextmanager
def engine(project: Path, backend: str, count: int) -> Generator[int]:
    """An engine that runs the workers; its process id."""
    (project / "run").mkdir(mode=0o700)
    (project / "home").mkdir(mode=0o700)
    (project / "home" / "kernels").symlink_to(KERNELS / "kernels")
    build_math_worker(project / "image", tag="1.0")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    workers: list[dict[str, Any]] = [{"name": "iii-worker-manager", "config": {"port": port}}]
    workers += [{"name": f"worker-{n}", "image": f"oci:{project}/image:1.0"} for n in range(count)]
    (project / "config.yaml").write_text(json.dumps({"workers": workers, "sandbox": {"backend": backend}}))
    process = subprocess.Popen([III], cwd=project, env=environ(project), stdin=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def environ(project: Path) -> dict[str, str]:
    """Of the engine, and of the commands that ask it."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(project),
        "III_HOME": str(project / "home"),
        "XDG_RUNTIME_DIR": str(project / "run"),
        "LANG": "C.UTF-8",
        "NO_COLOR": "1",
    }


def wait_running(project: Path, count: int) -> None:
    """Return when all workers are connected."""
    deadline = time.monotonic() + START
    while True:
        command = [str(III), "worker", "list", "--json"]
        done = subprocess.run(command, cwd=project, env=environ(project), stdout=subprocess.PIPE, check=False)
        rows: list[dict[str, Any]] = json.loads(done.stdout or b"{}").get("workers", [])
        if sum(row["status"] == "running" for row in rows if row["name"].startswith("worker-")) == count:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"the workers do not run: {rows}")
        time.sleep(1)


def cpu_seconds(engine_pid: int) -> dict[str, float]:
    """CPU time so far of the engine and of all that is below it (``proc_pid_stat(5)``, fields 14 and 15)."""
    spent: defaultdict[str, float] = defaultdict(float)
    children: dict[int, list[int]] = {}
    times: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
            times[int(entry.name)] = (int(fields[11]) + int(fields[12])) / TICKS
    waiting = [engine_pid]
    while waiting:
        pid = waiting.pop()
        spent["engine" if pid == engine_pid else part_of(pid)] += times[pid]
        waiting += children.get(pid, [])
    return spent


def part_of(pid: int) -> str:
    """Which of our processes it is, if it is one."""
    command = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    return next((name for module, name in OURS.items() if module in command), "sandboxes")
