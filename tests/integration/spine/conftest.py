"""A registry with real worker images, and projects whose engine is the real ``iii`` program."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from iiitools.ports import reserved_port
from iiitools.registry import Registry, run_registry
from iiitools.terminal import Terminal
from iiitools.waiting import PATIENCE, wait_until
from iiitools.workerimages import build_math_worker

III = Path(sys.executable).with_name("iii")
WORKER = "math-worker"
COMMAND_SECONDS = 100.0
"""What a command takes at most on a busy machine; less than those take that wait for a worker in vain (120 s)."""
CALL = ("trigger", "math::add", "a=2", "b=3")


class IIIProject:
    """A project in a folder of its own, driven through the command line alone."""

    def __init__(self, folder: Path, home: Path, environ: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.home = home
        self.runtime = Path(tempfile.mkdtemp(prefix="iii-test-"))
        self.config = folder / "config.yaml"
        self.log = folder / "engine.log"
        self._held = ExitStack()
        self.port = self._held.enter_context(reserved_port())
        self.wrapper: list[str] = []
        self.engine: subprocess.Popen[bytes] | None = None
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "III_HOME": str(home),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "LANG": "C.UTF-8",
            "NO_COLOR": "1",
            **(environ or {}),
        }
        self.config.write_text(f"workers:\n  - name: iii-worker-manager\n    config: {{port: {self.port}}}\n")

    def start(self) -> None:
        """Start the engine and wait until it says that it is ready."""
        said = self.log.stat().st_size if self.log.exists() else 0  # by an engine of before
        with self.log.open("ab") as log:
            self.engine = subprocess.Popen(
                [*self.wrapper, III],
                cwd=self.folder,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

        def is_ready() -> bool:
            ended = self.engine is None or self.engine.poll() is not None
            ready = b"engine ready on" in self.log.read_bytes()[said:]
            assert ready or not ended, self.log.read_text()
            return ready

        wait_until(is_ready, told=self.engine_log)

    def stop(self, how: int = signal.SIGTERM, timeout: float = PATIENCE) -> int:
        """End the engine; returns its exit code."""
        assert self.engine is not None
        self.engine.send_signal(how)
        code = self.engine.wait(timeout)
        self.engine = None
        return code

    def run(
        self, *arguments: str, stdin: bytes | None = None, timeout: float = COMMAND_SECONDS
    ) -> subprocess.CompletedProcess[bytes]:
        """Run ``iii`` with these arguments."""
        return subprocess.run(
            [*self.wrapper, III, *arguments],
            cwd=self.folder,
            env=self.environ,
            input=stdin if stdin is not None else b"",
            capture_output=True,
            timeout=timeout,
            check=False,
        )

    def ok(self, *arguments: str, stdin: bytes | None = None, timeout: float = COMMAND_SECONDS) -> str:
        """Run ``iii``, which must succeed; returns its stdout."""
        done = self.run(*arguments, stdin=stdin, timeout=timeout)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr, self.engine_log())
        return done.stdout.decode()

    def popen(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start ``iii`` with pipes on all three streams."""
        return subprocess.Popen(
            [*self.wrapper, III, *arguments],
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    @contextmanager
    def session(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """As `popen`; killed at the end of the block."""
        with self.popen(*arguments) as process:
            try:
                yield process
            finally:
                process.kill()

    def type(self, *arguments: str) -> Terminal:
        """Start ``iii`` on a terminal of its own."""
        return Terminal([III, *arguments], cwd=self.folder, env={**self.environ, "TERM": "xterm"})

    def row(self, name: str = WORKER) -> dict[str, Any]:
        """What ``iii worker list`` says of a worker."""
        rows: list[dict[str, Any]] = json.loads(self.ok("worker", "list", "--json"))["workers"]
        return next(row for row in rows if row["name"] == name)

    def status(self, name: str = WORKER) -> dict[str, Any]:
        """What ``iii worker status`` says of a worker, whatever its exit code."""
        done = self.run("worker", "status", name, "--json")
        assert done.stdout, (done, self.engine_log())
        facts: dict[str, Any] = json.loads(done.stdout)
        return facts

    def wait_for(self, condition: Callable[[dict[str, Any]], object], name: str = WORKER) -> dict[str, Any]:
        """Wait until a worker's status meets a condition; that status."""
        found: dict[str, Any] = {}

        def is_met() -> object:
            nonlocal found
            found = self.status(name)
            return condition(found)

        wait_until(is_met, told=lambda: (found, self.engine_log()))
        return found

    def wait_running(self, name: str = WORKER) -> dict[str, Any]:
        """Wait until a worker is ready."""
        return self.wait_for(lambda facts: facts["status"] == "running", name)

    def wait_restarted(self, restarts: int = 1) -> dict[str, Any]:
        """Wait until the worker is ready again after that many restarts."""
        return self.wait_for(lambda facts: facts["restarts"] >= restarts and facts["status"] == "running")

    def assert_callable(self) -> None:
        """``math-worker`` answers."""
        assert json.loads(self.ok(*CALL, "--port", str(self.port))) == {"sum": 5}

    def wait_callable(self, function: str = "math::add") -> None:
        """Wait until a worker that has just come to run provides its function.

        It is ready when it has connected to the engine, and it registers its functions a moment later.
        """

        def is_there() -> bool:
            functions = json.loads(self.ok("trigger", "engine::functions::list"))["functions"]
            return function in [row["function_id"] for row in functions]

        wait_until(is_there, told=self.engine_log)

    def wait_said(self, text: str) -> None:
        """Wait until the engine has said something."""
        wait_until(lambda: text in self.engine_log(), told=self.engine_log)

    def wait_logged(self, text: str) -> None:
        """Wait until the worker's stdout, in its log, ends with a line.

        What a worker prints before it answers a call comes another way than the answer, and may come later.
        """

        def printed() -> str:
            return self.ok("worker", "logs", WORKER, "--stream", "stdout")

        wait_until(lambda: printed().splitlines()[-1:] == [text], told=printed)

    def descendants(self) -> list[psutil.Process]:
        """All processes below the engine."""
        assert self.engine is not None
        return psutil.Process(self.engine.pid).children(recursive=True)

    def sandbox_host(self) -> psutil.Process:
        """The engine's sandbox host."""
        assert self.engine is not None
        return next(one for one in psutil.Process(self.engine.pid).children() if _is_sandbox_host(one))

    @contextmanager
    def nothing_boots(self) -> Iterator[None]:
        """For the time of the block, of far less than the 20 s after which the engine takes its host for dead."""
        host = self.sandbox_host()
        host.suspend()
        try:
            yield
        finally:
            host.resume()

    def engine_log(self) -> str:
        """What the engine said so far."""
        return self.log.read_text()[-6000:] if self.log.exists() else ""

    def close(self) -> None:
        """End what still runs."""
        if self.engine is not None and self.engine.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                self.stop()
            if self.engine is not None:
                self.stop(signal.SIGKILL)
        shutil.rmtree(self.runtime, ignore_errors=True)
        self._held.close()


def _is_sandbox_host(process: psutil.Process) -> bool:
    try:
        return "iii_core.sandbox.hostproc" in process.cmdline()
    except psutil.NoSuchProcess:  # it has ended meanwhile
        return False


@pytest.fixture
def port() -> Iterator[int]:
    """For a worker to publish."""
    with reserved_port() as reserved:
        yield reserved


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that holds ``math-worker:1.0``."""
    folder = tmp_path_factory.mktemp("registry")
    with run_registry(folder / "data") as running:
        layout = folder / "layout"
        build_math_worker(layout, tag="1.0")
        running.push(layout, "1.0", "math-worker:1.0")
        yield running


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``$III_HOME``, shared by all projects, so that images are merged once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def new_project() -> Iterator[Callable[[Path, Path], IIIProject]]:
    """Make a project in a folder, with images in another."""
    made: list[IIIProject] = []

    def make(folder: Path, home: Path) -> IIIProject:
        made.append(IIIProject(folder, home))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def project(new_project: Callable[[Path, Path], IIIProject], tmp_path: Path, home: Path) -> IIIProject:
    """A project without an engine yet."""
    return new_project(tmp_path, home)


@pytest.fixture
def working(project: IIIProject, registry: Registry) -> IIIProject:
    """A project of this test alone whose engine runs ``math-worker``."""
    project.ok("worker", "add", f"{registry.address}/math-worker:1.0")
    project.start()
    project.wait_running()
    project.wait_callable()
    return project


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, home: Path, registry: Registry) -> Iterator[IIIProject]:
    """A project whose engine runs ``math-worker``; shared by a module's tests, which leave it so."""
    made = IIIProject(tmp_path_factory.mktemp("project"), home)
    try:
        made.start()
        made.ok("worker", "add", f"{registry.address}/math-worker:1.0")
        made.wait_callable()
        yield made
    finally:
        made.close()
