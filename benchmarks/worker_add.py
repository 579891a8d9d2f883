"""``iii worker add`` of an image that is stored already, against the first time.

Real programs: a registry, an engine, the command. The first time copies the image's layers and merges them; the second
asks the registry what the tag means now and starts the sandbox. Both wait until the worker, which is written in
Python, has registered with the engine, so most of the second time is the start of its interpreter and SDK.
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from iiitools.bench import Row
from iiitools.registry import Registry, run_registry
from iiitools.workerimages import build_math_worker

III = Path(sys.executable).with_name("iii")
ROUNDS = 3
NAME = "math-worker"


def measure() -> list[Row]:
    """Warm against cold; each round has a store of its own."""
    cold: list[float] = []
    warm: list[float] = []
    copied: list[int] = []
    with tempfile.TemporaryDirectory() as name, run_registry(Path(name, "registry")) as registry:
        folder = Path(name)
        build_math_worker(folder / "layout", tag="1.0")
        reference = registry.push(folder / "layout", "1.0", f"{NAME}:1.0")
        for number in range(ROUNDS):
            with running_engine(folder / f"project-{number}") as project:
                cold.append(project.seconds("worker", "add", reference))
                project.seconds("worker", "remove", "-y", NAME)
                before = blobs_fetched(registry)
                assert before > 0, "the first time copied nothing"
                warm.append(project.seconds("worker", "add", reference))
                copied.append(blobs_fetched(registry) - before)
    return [
        Row(
            name="iii worker add, image stored",
            unit="s",
            ours=statistics.median(warm),
            reference=statistics.median(cold),
            reference_name="the same, nothing stored",
            aim=0.6,
            better="lower",
            conditions=f"layers copied when stored: {max(copied)}; up to the worker's registration",
        )
    ]


def blobs_fetched(registry: Registry) -> int:
    """Blobs that the registry gave out so far."""
    return sum('"GET ' in line and "/blobs/" in line for line in registry.requests())


class Project:
    """A project whose engine runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "III_HOME": str(folder / "home"),
            "XDG_RUNTIME_DIR": str(folder / "run"),
            "LANG": "C.UTF-8",
        }
        (folder / "run").mkdir(parents=True, mode=0o700)
        (folder / "config.yaml").write_text(
            f"workers:\n  - name: iii-worker-manager\n    config: {{port: {free_port()}}}\n"
        )

    def seconds(self, *arguments: str) -> float:
        """Run ``iii``, which must succeed; how long it took."""
        start = time.perf_counter()
        subprocess.run(
            [III, *arguments],
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            timeout=120,
            check=True,
        )
        return time.perf_counter() - start


@contextmanager
def running_engine(folder: Path) -> Generator[Project]:
    """A new project, its engine started; both gone at the end."""
    folder.mkdir()
    project = Project(folder)
    engine = subprocess.Popen(
        [III], cwd=folder, env=project.environ, stdin=subprocess.DEVNULL, stdout=sys.stderr, stderr=subprocess.PIPE
    )
    assert engine.stderr is not None
    try:
        with engine.stderr:
            while b"engine ready on" not in (line := engine.stderr.readline()):
                if not line:
                    raise RuntimeError("the engine ended")
            yield project
            engine.send_signal(signal.SIGTERM)
            engine.communicate(timeout=60)
    finally:
        engine.kill()
        engine.wait()


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
