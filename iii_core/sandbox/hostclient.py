"""The engine's side of the sandbox host: starts the process, calls it, notices its end, sweeps what it left."""

from __future__ import annotations

import logging
import math
import os
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from iii_core.errors import LinkClosed, LinkError, SandboxError, SandboxHostDied
from iii_core.records import ProbeResult
from iii_core.sandbox.background import open_background
from iii_core.sandbox.events import EventQueue
from iii_core.sandbox.host import SandboxHost
from iii_core.sandbox.host_processes import ProcessId, ProcessRecords
from iii_core.sandbox.host_wire import Call, Cancel, Ended, MessageSocket, Open, Ready, Reply, error_from
from iii_core.sandbox.port import SandboxDriver, SandboxEvent, SandboxSpec, SandboxState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from pathlib import Path

    from iii_core.records import OpenContext

STARTUP_TIMEOUT = 20.0
SHUTDOWN_TIMEOUT = 30.0
CANCEL_TIMEOUT = 60.0
PING_INTERVAL = 5.0
SILENCE = 20.0
"""Seconds; a host that does not answer for so long is frozen, and killed: what it cannot do, a new one can."""
PROCESS_FOLDER = "processes"
_log = logging.getLogger(__name__)


@asynccontextmanager
async def open_sandbox_host(
    context: OpenContext, *, config: Mapping[str, Mapping[str, Any]] | None = None
) -> AsyncGenerator[SandboxHost]:
    """Start a sandbox host process, and end it (and all its sandboxes) with the block.

    First sweeps what an earlier host of the same ``context.runtime_dir`` left behind, so that folder must belong to one
    engine at a time. After `SandboxHost.wait_died` returned, leave the block and enter a new one.

    Args:
        context: folders of the sandbox host; ``environ`` becomes the process's whole environment.
        config: settings by backend name, as plain data.

    Raises:
        SandboxHostDied: the process did not come up.
    """
    records = ProcessRecords(context.runtime_dir / PROCESS_FOLDER)
    context.runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    context.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    await trio.to_thread.run_sync(records.sweep)
    log = context.state_dir / "sandbox-host.log"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            process = await trio.to_thread.run_sync(partial(_spawn, theirs, context.environ, log))
        try:
            identity = ProcessId.of(process.pid)
            if identity is not None:
                records.add(identity)
            connection = _Connection(MessageSocket(ours), process, records, log)
            await connection.greet(context, config or {})
            async with open_background() as nursery:
                nursery.start_soon(connection.run)
                nursery.start_soon(connection.keep_alive)
                yield _RemoteHost(connection)
        finally:
            ours.close()  # the lifeline: the host destroys everything and ends
            with trio.CancelScope(shield=True):
                await _wait_end(process, SHUTDOWN_TIMEOUT)
                await trio.to_thread.run_sync(records.sweep)


def _spawn(theirs: socket.socket, environ: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    with open(log, "ab", opener=partial(os.open, mode=0o600)) as stderr:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "iii_core.sandbox.hostproc", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=(theirs.fileno(),),
            env=dict(environ),
            start_new_session=True,
            cwd="/",
        )


async def _wait_end(process: subprocess.Popen[bytes], limit: float) -> str:
    """Wait for the process, kill it after ``limit`` seconds, reap it; how it ended."""
    descriptor = os.pidfd_open(process.pid) if process.returncode is None else None
    if descriptor is not None:
        try:
            with trio.move_on_after(limit):
                await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)
        if process.poll() is None:
            process.kill()
    code = process.wait()  # it has ended, or does at once
    return f"signal {-code}" if code < 0 else f"exit {code}"


class _Pending:
    """A call that waits for its reply."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.reply: Reply | None = None
        self.descriptor: int | None = None


class _Connection:
    """Calls and their replies. Everything but `run` may be used by any number of tasks."""

    def __init__(
        self, messages: MessageSocket, process: subprocess.Popen[bytes], records: ProcessRecords, log: Path
    ) -> None:
        self._messages = messages
        self._process = process
        self._records = records
        self._log = log
        self._pending: dict[int, _Pending] = {}
        self._last_id = 0
        self._events: dict[str, EventQueue] = {}
        self._died = trio.Event()
        self._how = ""

    async def greet(self, context: OpenContext, config: Mapping[str, Any]) -> None:
        """Say hello and wait until the host serves. Raises `SandboxHostDied`."""
        hello = Open(
            state_dir=str(context.state_dir),
            runtime_dir=str(context.runtime_dir),
            home=str(context.home),
            config=dict(config),
        )
        try:
            with trio.fail_after(STARTUP_TIMEOUT):
                await self._messages.send(hello)
                answer, _ = await self._messages.receive()
        except (LinkClosed, trio.TooSlowError) as error:
            self._process.kill()
            raise SandboxHostDied("the sandbox host process did not come up", hint=f"its log is {self._log}") from error
        if not isinstance(answer, Ready):
            raise LinkError(f"the sandbox host answered {type(answer).__name__} to Open")

    async def run(self) -> None:
        """Take replies and events until the host is gone; then fail what waits, sweep, and tell `wait_died`."""
        try:
            while True:
                self._dispatch(*await self._messages.receive())
        except LinkError:
            self._how = await _wait_end(self._process, limit=0.5)
            await trio.to_thread.run_sync(self._records.sweep)
        finally:
            self._died.set()
            for waiting in self._pending.values():
                waiting.done.set()
            for queue in self._events.values():
                queue.close()

    async def keep_alive(self) -> None:
        """Kill a host that does not answer any more; `run` sees its end."""
        while not self._died.is_set():
            await trio.sleep(PING_INTERVAL)
            self._last_id += 1
            number = self._last_id
            waiting = self._pending[number] = _Pending()
            try:
                with trio.move_on_after(SILENCE) as scope:
                    await self._messages.send(Call(id=number, backend="", method="ping", params={}))
                    await waiting.done.wait()
            except LinkClosed:
                return
            finally:
                del self._pending[number]
            if scope.cancelled_caught:
                _log.error("the sandbox host has not answered for %g s and is killed", SILENCE)
                self._process.kill()
                return

    async def wait_died(self) -> str:
        """See `SandboxHost.wait_died`."""
        await self._died.wait()
        return self._how

    def events(self, backend: str) -> EventQueue:
        """The events of one backend."""
        return self._events.setdefault(backend, EventQueue())

    async def call(self, backend: str, method: str, **params: Any) -> tuple[Any, int | None]:
        """Call and wait; the result and the descriptor beside it, which the caller owns.

        Cancelling cancels the call in the host and waits until it has really ended there, at most `CANCEL_TIMEOUT`.
        """
        self._raise_if_dead()
        self._last_id += 1
        number = self._last_id
        waiting = self._pending[number] = _Pending()
        try:
            await self._send(Call(id=number, backend=backend, method=method, params=params))
            try:
                await waiting.done.wait()
            except trio.Cancelled:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + CANCEL_TIMEOUT):
                    await self._send(Cancel(id=number))
                    await waiting.done.wait()
                if waiting.descriptor is not None:
                    os.close(waiting.descriptor)
                raise
        finally:
            del self._pending[number]
        return self._outcome(waiting)

    def _outcome(self, waiting: _Pending) -> tuple[Any, int | None]:
        if waiting.reply is None:
            self._raise_if_dead()
            raise AssertionError("a call ended without reply while its host lives")
        if waiting.reply.failure is not None:
            raise error_from(waiting.reply.failure)
        if waiting.reply.cancelled:
            raise SandboxError("the sandbox host has too many calls in flight", hint="try again later")
        return waiting.reply.result, waiting.descriptor

    async def _send(self, message: Call | Cancel) -> None:
        try:
            await self._messages.send(message)
        except LinkClosed:
            await self._died.wait()
            self._raise_if_dead()

    def _dispatch(self, message: Any, descriptors: list[int]) -> None:
        waiting = self._pending.get(message.id) if isinstance(message, Reply) else None
        if waiting is not None:
            waiting.reply = message
            waiting.descriptor = descriptors.pop() if descriptors else None
            waiting.done.set()
        elif isinstance(message, Ended):
            event = SandboxEvent(id=message.id, exit=message.exit, console_tail=message.console_tail)
            self.events(message.backend).publish(event)
        for descriptor in descriptors:
            os.close(descriptor)

    def _raise_if_dead(self) -> None:
        if self._died.is_set():
            raise SandboxHostDied(
                f"the sandbox host process ended ({self._how or 'closed'}), and every sandbox with it",
                hint=f"its log is {self._log}",
            )


class _RemoteHost(SandboxHost):
    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._drivers: dict[str, _RemoteDriver] = {}

    async def driver(self, backend: str) -> SandboxDriver:
        await self._connection.call(backend, "open")
        return self._drivers.setdefault(backend, _RemoteDriver(self._connection, backend))

    async def probe(self, backend: str) -> ProbeResult:
        result, _ = await self._connection.call(backend, "probe")
        return msgspec.convert(result, ProbeResult)

    async def wait_died(self) -> str:
        return await self._connection.wait_died()


class _RemoteDriver(SandboxDriver):
    def __init__(self, connection: _Connection, backend: str) -> None:
        self._connection = connection
        self._backend = backend

    async def create(self, spec: SandboxSpec) -> None:
        await self._call("create", spec=spec)

    async def start(self, sandbox_id: str) -> None:
        await self._call("start", id=sandbox_id)

    async def link(self, sandbox_id: str) -> socket.socket:
        _, descriptor = await self._call("link", id=sandbox_id)
        if descriptor is None:
            raise LinkError("the sandbox host sent no descriptor for a link")
        return socket.socket(fileno=descriptor)

    async def stop(self, sandbox_id: str, *, grace: float) -> None:
        if not math.isfinite(grace):
            raise SandboxError(f"grace must be a finite number of seconds, not {grace}")
        await self._call("stop", id=sandbox_id, grace=grace)

    async def destroy(self, sandbox_id: str, *, keep_writable: bool) -> None:
        await self._call("destroy", id=sandbox_id, keep_writable=keep_writable)

    async def state(self, sandbox_id: str) -> SandboxState:
        result, _ = await self._call("state", id=sandbox_id)
        return msgspec.convert(result, SandboxState)

    async def save(self, sandbox_id: str, folder: Path) -> None:
        """See `iii_core.sandbox.port.Snapshots.save`; the host refuses where the backend has no such ability."""
        await self._call("save", id=sandbox_id, folder=folder)

    async def restore(self, sandbox_id: str, folder: Path) -> None:
        """See `iii_core.sandbox.port.Snapshots.restore`."""
        await self._call("restore", id=sandbox_id, folder=folder)

    def events(self) -> trio.MemoryReceiveChannel[SandboxEvent]:
        return self._connection.events(self._backend).receiver

    async def _call(self, method: str, **params: Any) -> tuple[Any, int | None]:
        return await self._connection.call(self._backend, method, **params)
