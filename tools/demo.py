"""`make demo`: a registry, an image, an engine, a sandboxed worker, a call, end to end, on real programs.

Everything happens in a temporary folder and on loopback. Each step is printed with the time it took; the first that
fails ends the demo with a non-zero exit code. Whatever happens, nothing is left running or mounted: this process adopts
what its children leave behind, so that it can see it.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from iii_core.sandbox import linux
from iiitools import leftovers
from iiitools.ports import reserved_port
from iiitools.registry import Registry, run_registry
from iiitools.workerimages import build_math_worker
from iiitools.worktree import ROOT

III = ROOT / ".venv" / "bin" / "iii"
COMMAND_SECONDS = 60.0
READY_SECONDS = 180.0
ENGINE_SECONDS = 60.0
KERNELS = ROOT / "build" / "guest"
GRACE_SECONDS = 5.0  # for an engine to end after a step that failed


class StepFailed(Exception):
    """A step did not do what it should; the text says what was seen instead."""


class Demo:
    """The steps of the demo, in a project of its own.

    Args:
        folder: an empty folder for everything: registry, project, store, sockets.
        port: for the engine.
        backend: the sandbox backend to ask for, or None for whatever is the strongest here.
    """

    def __init__(self, folder: Path, port: int, backend: str | None) -> None:
        self.folder = folder
        self.project = folder / "project"
        self.port = port
        self.backend = backend
        self.engine_log = folder / "engine.log"
        runtime = folder / "run"
        for path in (self.project, runtime):
            path.mkdir(mode=0o700)
        self.environment = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": str(folder),
            "III_HOME": str(folder / "home"),
            "XDG_RUNTIME_DIR": str(runtime),
            "LANG": "C.UTF-8",
            "NO_COLOR": "1",
        }

    def run(self) -> None:
        """All steps.

        Raises:
            StepFailed: one of them failed.
        """
        with ExitStack() as stack:
            with step("build the image of examples/math-worker (Debian's Python, iii-sdk from PyPI)"):
                layout = self.folder / "image"
                build_math_worker(layout, tag="1.0")
            if self.backend:
                with step("iii sandbox setup (what that backend boots, kept below build/)"):
                    self.set_up_sandboxes()
            with step("start a registry"):
                registry = stack.enter_context(run_registry(self.folder / "registry"))
            with step("push the image"):
                reference = self.push(registry, layout)
            with step(f"start the engine: iii (port {self.port})"):
                stack.enter_context(self.engine())
            with step(f"iii worker add {reference}"):
                expect("ready in", self.iii("worker", "add", reference, timeout=READY_SECONDS, show=True))
            with step("iii trigger math::add a=2 b=3"):
                self.wait_function("math::add")
                expect_sum(self.iii("trigger", "math::add", "a=2", "b=3"))
            with step("iii worker list"):
                expect("math-worker", self.iii("worker", "list", show=True))
            with step("iii worker logs math-worker"):
                self.wait_logged("adding 2 and 3")
                expect("adding 2 and 3", self.iii("worker", "logs", "math-worker", show=True))
            with step("iii worker exec math-worker -- uname -a"):
                expect("Linux", self.iii("worker", "exec", "math-worker", "--", "uname", "-a", show=True))
            with step("iii worker remove -y math-worker"):
                self.iii("worker", "remove", "-y", "math-worker")
                if "math-worker" in (self.project / "config.yaml").read_text():
                    raise StepFailed("config.yaml still names the worker")

    def set_up_sandboxes(self) -> None:
        """Fetch a kernel for virtual machines, or take the one that the tests have fetched."""
        kernels = KERNELS / "kernels"
        kernels.mkdir(parents=True, exist_ok=True)
        home = Path(self.environment["III_HOME"])
        home.mkdir(mode=0o700, exist_ok=True)
        (home / "kernels").symlink_to(kernels)
        self.iii("sandbox", "setup", timeout=READY_SECONDS)

    def push(self, registry: Registry, layout: Path) -> str:
        """Push the image; returns the reference to add."""
        pushed = registry.push(layout, "1.0", "math-worker:1.0")
        return "localhost:" + pushed.partition(":")[2]

    @contextmanager
    def engine(self) -> Generator[None]:
        """The engine of the project, for the scope's time."""
        self.write_config()
        with self.engine_log.open("wb") as log:
            process = subprocess.Popen(
                [III], cwd=self.project, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            self.wait_for_engine(process)
            yield
        except BaseException:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
            process.kill()
            process.wait()
            raise
        with step("stop the engine"):
            self.stop_engine(process)

    def write_config(self) -> None:
        """A project whose engine listens on the demo's port."""
        config = f"workers:\n  - name: iii-worker-manager\n    config:\n      port: {self.port}\n"
        if self.backend:
            config += f"sandbox:\n  backend: {self.backend}\n"
        (self.project / "config.yaml").write_text(config)

    def wait_for_engine(self, process: subprocess.Popen[bytes]) -> None:
        """Return once the engine accepts connections."""
        deadline = time.monotonic() + ENGINE_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise StepFailed(f"the engine ended with exit code {process.returncode}:\n{self.log_tail()}")
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.05)  # another program's port: there is no event to wait for
            else:
                return
        raise StepFailed(f"the engine did not open port {self.port} in {ENGINE_SECONDS:.0f} s:\n{self.log_tail()}")

    def stop_engine(self, process: subprocess.Popen[bytes]) -> None:
        """Ask the engine to end, and see that it does so with exit code 0."""
        process.send_signal(signal.SIGINT)
        try:
            code = process.wait(ENGINE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise StepFailed(f"the engine did not end in {ENGINE_SECONDS:.0f} s:\n{self.log_tail()}") from None
        if code != 0:
            raise StepFailed(f"the engine ended with exit code {code}:\n{self.log_tail()}")

    def iii(self, *arguments: str, timeout: float = COMMAND_SECONDS, show: bool = False) -> str:
        """Run the command line in the project; returns its stdout, and its stderr too with ``show``, which prints both.

        Raises:
            StepFailed: it failed or did not end in time.
        """
        try:
            done = subprocess.run(
                [III, *arguments],
                cwd=self.project,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as error:
            said = b"".join(part for part in (error.stdout, error.stderr) if isinstance(part, bytes))
            raise StepFailed(f"no end after {timeout:.0f} s; it said:\n{said.decode(errors='replace')}") from None
        if done.returncode:
            raise StepFailed(f"exit code {done.returncode}; it said:\n{done.stdout}{done.stderr}\n{self.log_tail()}")
        if not show:
            return done.stdout
        print_indented(done.stdout + done.stderr)
        return done.stdout + done.stderr

    def wait_function(self, function: str) -> None:
        """Give a worker that has just connected the moment that it takes to register its function."""
        self.wait_printed(f'"{function}"', "trigger", "engine::functions::list")

    def wait_logged(self, text: str) -> None:
        """Give what a worker printed before it answered the moment that it may take longer than the answer."""
        self.wait_printed(text, "worker", "logs", "math-worker")

    def wait_printed(self, text: str, *arguments: str) -> None:
        """Run a command until it prints a text, or for long enough."""
        deadline = time.monotonic() + COMMAND_SECONDS
        while text not in self.iii(*arguments) and time.monotonic() < deadline:
            time.sleep(0.1)

    def log_tail(self) -> str:
        """The engine's last words."""
        text = self.engine_log.read_text(errors="replace") if self.engine_log.exists() else ""
        return "the engine's log ends with:\n" + "\n".join(text.splitlines()[-20:])


def expect_sum(output: str) -> None:
    """Check and show the result of the call."""
    print_indented(output)
    try:
        result = json.loads(output)
    except ValueError:
        raise StepFailed(f"the result is no JSON: {output!r}") from None
    if result not in (5, {"sum": 5}):
        raise StepFailed(f"2 + 3 gave {result!r}")


def expect(text: str, output: str) -> None:
    """Check that the output holds a text."""
    if text not in output:
        raise StepFailed(f"{text!r} is missing in:\n{output}")


@contextmanager
def step(name: str) -> Generator[None]:
    """Print a step, and how long it took."""
    print(f"▸ {name}", flush=True)
    start = time.monotonic()
    try:
        yield
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        raise StepFailed(f"{type(error).__name__}: {error}{getattr(error, 'stderr', None) or ''}") from error
    print(f"  {time.monotonic() - start:.2f} s", flush=True)


def print_indented(text: str) -> None:
    for line in text.splitlines():
        print(f"  │ {line}")


def guarded(action: Callable[[], None], folder: Path) -> list[str]:
    """Run the demo and clean up after it; returns what went wrong, if anything did."""
    problems: list[str] = []
    try:
        action()
    except StepFailed as error:
        problems.append(str(error))
    except KeyboardInterrupt:
        problems.append("interrupted")
    finally:
        problems += leftovers.remove(folder)
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description="Show iii end to end.")
    parser.add_argument("--backend", help="the sandbox backend to use (default: the strongest that works here)")
    parser.add_argument("--keep", action="store_true", help="keep the folder of the demo")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    linux.adopt_orphans()

    start = time.monotonic()
    folder = Path(tempfile.gettempdir(), f"iii-demo-{secrets.token_hex(4)}")
    folder.mkdir(mode=0o700)
    with reserved_port() as port:
        problems = guarded(Demo(folder, port, arguments.backend).run, folder)
    if arguments.keep:
        print(f"kept {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    for problem in problems:
        print(f"✗ {problem}", file=sys.stderr)
    if not problems:
        print(f"✓ all steps worked, nothing is left running or mounted ({time.monotonic() - start:.1f} s)")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
