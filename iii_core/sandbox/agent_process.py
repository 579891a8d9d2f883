"""A program that the guest agent runs, as the host sees it (``docs/protocol/agent.md``, "PROCESS", "COPY", "ADOPT")."""

from __future__ import annotations

import errno
import os
from typing import Final

import trio

from iii_core.errors import LinkClosed, LinkError, ProcessSpawnError
from iii_core.link.mux import Closed, Data, Eof, Mux, MuxStream
from iii_core.sandbox import agent_wire as wire
from iii_core.sandbox.agent_wire import ExitStatus, SpawnFailure, Started, TerminalSize

STDIN: Final = 0
STDOUT: Final = 1
STDERR: Final = 2


class AgentProcess:
    """A program that was started in a sandbox. Obtained from `Agent.spawn` or `Agent.adopt`.

    One task may send, another receive; `wait`, `signal`, `resize` and `kill` may be called from any. All are
    checkpoints. All raise `LinkError` when the link has ended and the process is not known to have.
    """

    def __init__(self, mux: Mux) -> None:
        self._mux = mux
        self._stream: MuxStream | None = None
        self._started: Started | None = None
        self._failure: SpawnFailure | None = None
        self._status: ExitStatus | None = None
        self._release_asked = False

    @property
    def pid(self) -> int:
        """Its process id inside the sandbox."""
        assert self._started is not None
        return self._started.pid

    @property
    def status(self) -> ExitStatus | None:
        """How it ended, if it has."""
        return self._status

    @property
    def released(self) -> bool:
        """Whether the agent keeps it for `Agent.adopt`, and this object has nothing to do with it any more."""
        return self._release_asked and self._status is None and self._open_stream.is_ended

    async def send_stdin(self, data: bytes) -> None:
        """Send input; waits while the process does not read. What an ended process no longer reads is dropped.

        When cancelled, a part may have been sent. Raises ``trio.ClosedResourceError`` after `close_stdin` and `kill`.
        """
        try:
            await self._open_stream.send_data(STDIN, data)
        except LinkClosed:
            if self._status is None:
                raise

    async def close_stdin(self) -> None:
        """End of input; on a terminal the end-of-file character is typed. Idempotent."""
        try:
            await self._open_stream.send_eof(STDIN)
        except LinkClosed:
            if self._status is None:
                raise

    async def receive_output(self) -> tuple[int, bytes] | None:
        """The next piece of output as (channel, bytes): 1 is stdout or the terminal, 2 stderr. None at the end.

        All that the process wrote before it ended, or was released, comes before None. After `kill` there is only None.
        Nothing is lost when this is cancelled.
        """
        while True:
            try:
                item = await self._open_stream.receive()
            except trio.ClosedResourceError:
                return None
            match item:
                case Data(channel=channel, data=data) if channel in (STDOUT, STDERR):
                    return channel, data
                case Eof(channel=channel) if channel in (STDOUT, STDERR):
                    pass
                case Closed() if self._status is not None or self._release_asked:
                    return None
                case _:
                    self._mux.fail(LinkError(f"the guest agent sent {type(item).__name__} out of order on a process"))
                    self._mux.check()

    async def signal(self, number: int) -> None:
        """Send a signal to its process group. Does nothing once it has ended."""
        if self._status is None:
            await self._send(wire.encode_signal(number))
        else:
            await trio.lowlevel.checkpoint()

    async def resize(self, size: TerminalSize) -> None:
        """Change the size of its terminal, which sends it SIGWINCH. Does nothing without a terminal."""
        await self._send(wire.encode_resize(size))

    async def wait(self) -> ExitStatus:
        """Wait until it has ended, and (with ``linger``) its process group too.

        The end is reported once its output was taken, or waits here within the window of 128 KiB: a process whose
        output nobody receives may never end, as with a pipe.
        """
        await self._open_stream.until(lambda: self._status is not None)
        assert self._status is not None
        return self._status

    async def release(self, key: str) -> bool:
        """Let the agent keep the process, with what it writes from now on, for `Agent.adopt`.

        Only for a process without input and terminal. True once it is kept; False if it has ended instead. What it
        wrote before is still received. Cancelled, it may or may not be kept: `released` comes to tell.
        """
        self._release_asked = True
        await self._send(wire.encode_release(key))
        await self._open_stream.until(lambda: self._status is not None or self._open_stream.is_ended)
        return self.released

    async def kill(self) -> None:
        """SIGKILL to its process group, and drop its output. `wait` then gives the status. Idempotent.

        To keep the output up to the end, ``signal(9)`` instead and go on receiving. Done even if cancelled.
        """
        await self._open_stream.close("kill")

    @property
    def _open_stream(self) -> MuxStream:
        assert self._stream is not None
        return self._stream

    async def _send(self, message: bytes) -> None:
        try:
            await self._open_stream.send_message(message)
        except (LinkClosed, trio.ClosedResourceError):
            if self._status is None and not self._open_stream.is_closed:
                raise

    def on_message(self, payload: bytes) -> None:
        """For `Agent`: a message of this process's stream. Raises `LinkError` for one that must not come now."""
        message = wire.decode_process_message(payload)
        match message:
            case Started() if self._started is None and self._failure is None:
                self._started = message
            case SpawnFailure() if self._started is None and self._failure is None:
                self._failure = message
            case ExitStatus() if self._started is not None and self._status is None:
                self._status = message
            case _:
                raise LinkError(f"the guest agent sent {type(message).__name__} out of order")

    async def begin(self, what: str, payload: bytes, timeout: float) -> None:
        """For `Agent`: open the stream and wait for what comes of it. ``what`` is for people."""
        if len(payload) > self._mux.peer.max_message:
            raise ProcessSpawnError(
                f"cannot start {what} in the sandbox: arguments and environment take {len(payload)} bytes",
                hint=f"at most {self._mux.peer.max_message} bytes can be given",
                details={"errno": errno.E2BIG},
            )
        try:
            with trio.fail_after(timeout):
                self._stream = await self._mux.open(payload, on_message=self.on_message)
                await self._stream.until(lambda: self._started is not None or self._failure is not None)
        except trio.TooSlowError:
            self._give_up()
            raise _too_slow(what, timeout) from None
        except BaseException:
            self._give_up()
            raise
        if self._failure is not None:
            raise _spawn_error(what, self._failure)

    def _give_up(self) -> None:
        if self._stream is not None:
            self._stream.reset("spawn given up")


def _too_slow(what: str, timeout: float) -> ProcessSpawnError:
    return ProcessSpawnError(
        f"starting {what} in the sandbox took longer than {timeout} s",
        hint="is the sandbox short of memory or CPU, or full of processes?",
        details={"errno": errno.ETIMEDOUT},
    )


def _spawn_error(what: str, failure: SpawnFailure) -> ProcessSpawnError:
    return ProcessSpawnError(
        f"cannot start {what} in the sandbox: {failure.text or os.strerror(failure.errno)}",
        details={"errno": failure.errno},
    )
