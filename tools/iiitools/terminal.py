"""A program on a terminal of its own, driven like a person would: read what is shown, type an answer."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from iiitools.waiting import PATIENCE


class Terminal:
    """A running program; ``with`` ends it. ``seen`` is what was shown and not yet matched by `expect`."""

    def __init__(self, argv: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str]) -> None:
        self.seen = b""
        self._master, slave = os.openpty()
        termios.tcsetwinsize(self._master, (40, 120))
        self.process = subprocess.Popen(
            argv, stdin=slave, stdout=slave, stderr=slave, cwd=cwd, env=env, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self._master)

    def send(self, keys: bytes) -> None:
        """Press keys; ``b"\\x03"`` is Ctrl-C."""
        os.write(self._master, keys)

    def expect(self, pattern: bytes, timeout: float = PATIENCE) -> re.Match[bytes]:
        """Wait until ``pattern`` is shown, and take everything up to there.

        Raises:
            AssertionError: it does not come in time, or the program ends before.
        """
        deadline = time.monotonic() + timeout
        while (found := re.search(pattern, self.seen)) is None:
            if not self._read(deadline):
                raise AssertionError(f"{pattern!r} was not shown, only {self.seen!r}")
        self.seen = self.seen[found.end() :]
        return found

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait for the end, reading on; the exit code. Raises `subprocess.TimeoutExpired`."""
        deadline = time.monotonic() + timeout
        while self._read(deadline):
            pass
        return self.process.wait(max(0.1, deadline - time.monotonic()))

    def _read(self, deadline: float) -> bool:
        """Read once; False at the end of time, or of the program (``EIO``, `pty(7)`)."""
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([self._master], [], [], left)[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:
            return False
        self.seen += data
        return bool(data)
