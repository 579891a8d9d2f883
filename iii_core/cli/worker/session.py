"""An ``exec`` session: this terminal or these pipes on one side, a process in a worker's sandbox on the other.

stdin, stdout and stderr are inherited, so their file descriptions are shared with other programs and are never made
non-blocking; what could block is done in threads that are left behind when the session ends (spec worker-cli §6.1).
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import termios
import tty
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import trio

from iii_core.cli.output import PIPE_EXIT, unwritten
from iii_core.cli.running import run_async
from iii_core.control.client import decode, engine_gone, open_stream, result_of
from iii_core.errors import LinkError
from iii_core.link.mux import Closed, Data, Message

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from iii_core.link.mux import MuxStream
    from iii_core.project.locate import Project

TIMED_OUT: Final = 124
KILLED: Final = 130
STDIN, STDOUT, STDERR = 0, 1, 2
PRESS_AGAIN: Final = 1.0
FORWARD_GRACE: Final = 10.0
DEFAULT_SIZE: Final = (24, 80)
_CHUNK: Final = 1 << 16
_NO_READER: Final = (errno.EPIPE, errno.EIO)  # EIO is a terminal that hung up


@dataclass(kw_only=True)
class Session:
    """One session; `run` it once. ``terminal``: the process gets a terminal. ``timeout`` in seconds."""

    project: Project
    name: str
    argv: Sequence[str]
    env: dict[str, str]
    cwd: str | None
    terminal: bool
    timeout: float | None
    timed_out: bool = field(default=False, init=False)
    _code: int | None = field(default=None, init=False)

    def run(self) -> int:
        """Run to the end and give the exit code, 128 + N for a signal; the terminal is restored whatever happens.

        Raises `ProcessSpawnError`, `WorkerNotRunning`, `EngineNotRunning` and other kinds of `IIIError`.
        """
        try:
            with _raw_terminal(self.terminal), _resizes_waiting(self.terminal):
                run_async(self._run)
        except LinkError as error:
            raise engine_gone() from error
        assert self._code is not None
        return self._code

    async def _run(self) -> None:
        args: dict[str, Any] = {
            "name": self.name,
            "argv": list(self.argv),
            "env": self.env,
            "cwd": self.cwd,
            "tty": None,
        }
        size = _terminal_size()
        if self.terminal:
            args["tty"] = {"rows": size[0], "cols": size[1]}
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async with open_stream(self.project, "worker.exec", args) as stream, trio.open_nursery() as nursery:
                nursery.start_soon(self._forward_input, stream)
                nursery.start_soon(self._forward_signals, stream, signals, nursery.cancel_scope)
                if self.terminal:
                    nursery.start_soon(_forward_resizes, stream, size)
                if self.timeout is not None:
                    nursery.start_soon(self._expire, self.timeout, stream, nursery.cancel_scope)
                await self._relay_output(stream)
                nursery.cancel_scope.cancel()

    async def _relay_output(self, stream: MuxStream) -> None:
        while True:
            received = await stream.receive()
            if isinstance(received, Data) and received.channel in (STDOUT, STDERR):
                if not await _write(received.channel, received.data):
                    self._finish(PIPE_EXIT)
                    return
            elif isinstance(received, Message):
                message = decode(received.payload)
                if "result" in message or "error" in message:
                    self._finish(int(result_of(message)["exit_code"]))
                    return
            elif isinstance(received, Closed):
                raise engine_gone()

    async def _forward_input(self, stream: MuxStream) -> None:
        # A terminal in pipe mode belongs to the user's shell, not to the process: it sees the end at once.
        try:
            if self.terminal or not os.isatty(STDIN):
                while data := await _read(STDIN):
                    await stream.send_data(STDIN, data)
            await stream.send_eof(STDIN)
        except LinkError:
            pass  # whoever reads the stream learns why

    async def _forward_signals(self, stream: MuxStream, signals: Any, scope: trio.CancelScope) -> None:
        pressed = float("-inf")
        async for number in signals:
            if number == signal.SIGINT:
                now = trio.current_time()
                if now - pressed <= PRESS_AGAIN:
                    await self._kill(stream, KILLED, scope)
                    return
                pressed = now
                await _tell(stream, {"signal": int(number)})
            else:
                await _tell(stream, {"signal": int(number)})
                scope.deadline = trio.current_time() + FORWARD_GRACE
                self._finish(128 + number)

    async def _expire(self, seconds: float, stream: MuxStream, scope: trio.CancelScope) -> None:
        await trio.sleep(seconds)
        self.timed_out = self._code is None
        await self._kill(stream, TIMED_OUT, scope)

    async def _kill(self, stream: MuxStream, code: int, scope: trio.CancelScope) -> None:
        """Kill the process and leave without waiting for it; the engine also kills it because this side leaves."""
        self._finish(code)
        await _tell(stream, {"signal": int(signal.SIGKILL)})
        scope.cancel()

    def _finish(self, code: int) -> None:
        """The first reason to end is the one that is told."""
        if self._code is None:
            self._code = code


async def _forward_resizes(stream: MuxStream, told: tuple[int, int]) -> None:
    """Tell of each new size of the terminal, one at a time; ``told`` is the one that is known."""
    while True:
        await trio.to_thread.run_sync(signal.sigwait, {signal.SIGWINCH}, abandon_on_cancel=True)
        size = _terminal_size()
        if size != told:
            await _tell(stream, {"resize": list(size)})
            told = size


async def _tell(stream: MuxStream, message: dict[str, Any]) -> None:
    try:
        with trio.move_on_after(1):
            await stream.send_message(json.dumps(message).encode())
    except LinkError:
        pass  # whoever reads the stream learns why


async def _read(descriptor: int) -> bytes:
    """What there is to read, or ``b""`` at the end; a terminal that hung up counts as one."""
    try:
        return await trio.to_thread.run_sync(os.read, descriptor, _CHUNK, abandon_on_cancel=True)
    except OSError:
        return b""


async def _write(descriptor: int, data: bytes) -> bool:
    """Write everything; false if nobody reads any more. Raises `OutputError`, as for a full disk."""
    while data:
        try:
            data = data[await trio.to_thread.run_sync(os.write, descriptor, data, abandon_on_cancel=True) :]
        except BlockingIOError:  # somebody else made our terminal or pipe non-blocking
            await trio.lowlevel.wait_writable(descriptor)
        except OSError as error:
            if error.errno in _NO_READER:
                return False
            raise unwritten(error) from error
    return True


def _terminal_size() -> tuple[int, int]:
    for descriptor in (STDOUT, STDIN, STDERR):
        try:
            columns, rows = os.get_terminal_size(descriptor)
        except OSError:
            continue
        if rows and columns:
            return rows, columns
    return DEFAULT_SIZE


@contextmanager
def _resizes_waiting(wanted: bool) -> Generator[None]:
    """Have SIGWINCH wait until somebody asks for it (sigwait(3)): however many come, one waits.

    A handler in Python is called anew for each, also while it runs, until the stack is full.
    """
    if not wanted:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _raw_terminal(wanted: bool) -> Generator[None]:
    """Pass keys on as they are pressed, while the block lasts; nothing where stdin is no terminal."""
    if not wanted or not os.isatty(STDIN):
        yield
        return
    sys.stderr.flush()
    before = termios.tcgetattr(STDIN)
    tty.setraw(STDIN, termios.TCSADRAIN)
    try:
        yield
    finally:
        termios.tcsetattr(STDIN, termios.TCSADRAIN, before)
