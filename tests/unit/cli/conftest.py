"""The real ``iii`` script, with pipes or on a terminal, in a project of its own."""

from __future__ import annotations

import fcntl
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

SCRIPT = str(Path(sys.executable).with_name("iii"))
DOUBLE = str(Path(__file__).with_name("enginedouble.py"))
CONFIG = """\
# project of a test
workers:
  - name: running
    image: reg.test/a/running:1
  - name: failing
    image: reg.test/a/failing:1
  - name: slow
    image: reg.test/a/slow:1
  - name: still
    image: reg.test/a/still:1
  - name: iii-http
"""


class Iii:
    """Runs ``iii`` in a project."""

    def __init__(self, root: Path, runtime: Path) -> None:
        self.root = root
        keep = ("PATH", "LANG", "LC_ALL")
        self.env = {name: os.environ[name] for name in keep if name in os.environ}
        self.env |= {"HOME": str(root / "home"), "XDG_RUNTIME_DIR": str(runtime), "PYTHONUTF8": "1", "TERM": "xterm"}
        (root / "home").mkdir()
        self.started: list[subprocess.Popen[bytes]] = []

    def __call__(self, *args: str, stdin: bytes = b"", env: dict[str, str] | None = None, **options: Any) -> Result:
        done = subprocess.run(
            [SCRIPT, *args],
            input=stdin,
            capture_output=True,
            cwd=options.pop("cwd", self.root),
            env=self.env | (env or {}),
            timeout=40,
            check=False,
            **options,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def start(self, *args: str, **options: Any) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        settings: dict[str, Any] = {"stdin": pipe, "stdout": pipe, "stderr": pipe, **options}
        self.started.append(subprocess.Popen([SCRIPT, *args], cwd=self.root, env=self.env, **settings))
        return self.started[-1]

    def close(self) -> None:
        """Kill what a test has left running."""
        for process in self.started:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with suppress(BrokenPipeError):
                        stream.close()

    def terminal(self, *args: str, rows: int = 30, columns: int = 100, **options: Any) -> Terminal:
        return Terminal([SCRIPT, *args], self.root, self.env | options.pop("env", {}), rows, columns, **options)

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"


class Result:
    def __init__(self, code: int, out: bytes, err: bytes) -> None:
        self.code, self.raw = code, out
        self.out, self.err = out.decode(errors="replace"), err.decode(errors="replace")

    def __repr__(self) -> str:
        return f"exit {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


class Terminal:
    """A program on a terminal of its own; ``out`` may send its stdout to a file instead."""

    def __init__(
        self,
        argv: list[str],
        cwd: Path,
        env: dict[str, str],
        rows: int,
        columns: int,
        out: Any = None,
        stdin: Any = None,
    ) -> None:
        self.master, slave = os.openpty()
        self.resize(rows, columns)
        self.attributes = termios.tcgetattr(slave)
        self.slave = slave
        self.seen = b""
        self.process = subprocess.Popen(
            argv,
            stdin=slave if stdin is None else stdin,
            stdout=slave if out is None else out,
            stderr=slave,
            cwd=cwd,
            env=env,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(2, termios.TIOCSCTTY, 0),
        )

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def send(self, data: bytes) -> None:
        os.write(self.master, data)

    def expect(self, pattern: bytes, timeout: float = 20) -> re.Match[bytes]:
        """Wait until what was shown since the last match holds ``pattern``."""
        deadline = time.monotonic() + timeout
        while (found := re.search(pattern, self.seen)) is None:
            left = deadline - time.monotonic()
            readable = left > 0 and select.select([self.master], [], [], left)[0]
            assert readable, f"{pattern!r} not in {self.seen!r}"
            try:
                data = os.read(self.master, 65536)
            except OSError:
                data = b""
            assert data, f"{pattern!r} not in {self.seen!r}"
            self.seen += data
        self.seen = self.seen[found.end() :]
        return found

    def wait(self, timeout: float = 20) -> int:
        """The exit code; goes on reading, so that the program is never held up."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"still running; last seen: {self.seen!r}"
            if select.select([self.master], [], [], 0.02)[0]:
                self.seen += os.read(self.master, 65536)
        while select.select([self.master], [], [], 0)[0]:
            self.seen += os.read(self.master, 65536)
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@contextmanager
def runtime_folder() -> Iterator[Path]:
    """A runtime folder whose path is short enough for sockets, whatever pytest's own is."""
    folder = Path(f"/tmp/iii-test-{os.getpid()}-{time.monotonic_ns()}")
    folder.mkdir(mode=0o700)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def running_engine(project: Iii) -> Iterator[Iii]:
    """Run the double for a project."""
    double = subprocess.Popen(
        [sys.executable, DOUBLE, str(project.root)],
        env=project.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=project.root,
    )
    assert double.stdout is not None
    assert double.stdin is not None
    assert double.stdout.readline() == b"serving\n"
    yield project
    double.stdin.close()
    double.stdout.close()
    double.wait(10)


@pytest.fixture
def runtime() -> Iterator[Path]:
    with runtime_folder() as folder:
        yield folder


@pytest.fixture
def iii(tmp_path: Path, runtime: Path) -> Iterator[Iii]:
    """``iii`` in an empty folder."""
    started = Iii(tmp_path, runtime)
    yield started
    started.close()


@pytest.fixture
def project(iii: Iii) -> Iii:
    """``iii`` in a project with `CONFIG`."""
    iii.config.write_text(CONFIG)
    return iii


@pytest.fixture
def engine(project: Iii) -> Iterator[Iii]:
    """``iii`` in a project whose engine runs."""
    with running_engine(project) as running:
        yield running


@pytest.fixture(scope="module")
def shared_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Iii]:
    """As `engine`, for tests that leave the workers as they are."""
    with runtime_folder() as folder:
        shared = Iii(tmp_path_factory.mktemp("shared"), folder)
        shared.config.write_text(CONFIG)
        with running_engine(shared) as running:
            yield running
        shared.close()


@pytest.fixture
def terminal(iii: Iii) -> Iterator[Callable[..., Terminal]]:
    """Start ``iii`` on a terminal."""
    started: list[Terminal] = []

    def start(*args: str, of: Iii = iii, **options: Any) -> Terminal:
        started.append(of.terminal(*args, **options))
        return started[-1]

    yield start
    for one in started:
        one.close()
