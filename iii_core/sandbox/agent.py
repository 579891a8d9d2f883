"""The host's side of the agent protocol: processes and tunnels in one sandbox (``docs/protocol/agent.md``).

::

    async with open_agent(stream, tunnel_ports=[49134], serve_tunnel=serve) as agent:
        process = await agent.spawn(ProcessSpec(argv=["echo", "hi"], env={}))
        while (output := await process.receive_output()) is not None:
            channel, data = output
        status = await process.wait()
        await agent.power_off(grace=2)

The link belongs to `open_agent`; processes and tunnels belong to the `Agent`. A reader that is slow with one process's
output stalls that process and nobody else. Every byte of the guest is hostile: what breaks the protocol ends the link
with `LinkError`, for all of them.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from iii_core.errors import BootFailed, BootTimeout, LinkClosed, LinkError, ProcessSpawnError, UnsupportedOperation
from iii_core.link.handshake import shake_hands
from iii_core.link.limits import LinkLimits
from iii_core.link.mux import Closed, Data, Eof, Message, Mux, MuxStream, Role, open_mux
from iii_core.link.nursery import open_service_nursery
from iii_core.sandbox import agent_wire as wire
from iii_core.sandbox.agent_tunnel import TunnelStream
from iii_core.sandbox.agent_wire import (
    Connection,
    ExitStatus,
    ProcessSpec,
    Ready,
    SpawnFailure,
    Started,
    TerminalSize,
)

__all__ = [
    "Agent",
    "AgentProcess",
    "AgentTimeouts",
    "ExitStatus",
    "ProcessSpec",
    "TerminalSize",
    "open_agent",
]

STDIN: Final = 0
STDOUT: Final = 1
STDERR: Final = 2
MAX_TUNNELS: Final = 200
ENTROPY_BYTES: Final = 64
ServeTunnel = Callable[[trio.abc.Stream], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTimeouts:
    """In seconds.

    Attributes:
        boot: from `open_agent` until the agent is configured.
        ping: how often the agent is asked for a sign of life.
        silence: the link is given up when nothing came for so long.
        dead_man: the agent powers the sandbox off when it heard nothing for so long; 0 for never.
        spawn: how long starting a program may take inside.
    """

    boot: float = 30.0
    ping: float = 5.0
    silence: float = 30.0
    dead_man: float = 30.0
    spawn: float = 30.0


class AgentProcess:
    """A program that was started in a sandbox. Obtained from `Agent.spawn`.

    One task may send, another receive; `wait`, `signal`, `resize` and `kill` may be called from any. All are
    checkpoints. All raise `LinkError` when the link has ended and the process is not known to have.
    """

    def __init__(self, mux: Mux) -> None:
        self._mux = mux
        self._stream: MuxStream | None = None
        self._started: Started | None = None
        self._failure: SpawnFailure | None = None
        self._status: ExitStatus | None = None

    @property
    def pid(self) -> int:
        """Its process id inside the sandbox."""
        assert self._started is not None
        return self._started.pid

    @property
    def status(self) -> ExitStatus | None:
        """How it ended, if it has."""
        return self._status

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

        All that the process wrote before it ended comes before None. After `kill` there is only None. Nothing is lost
        when this is cancelled.
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
                case Closed() if self._status is not None:
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

    async def begin(self, spec: ProcessSpec, timeout: float) -> None:
        """For `Agent`: open the stream and wait for what comes of it."""
        payload = wire.encode_process(spec)
        if len(payload) > self._mux.peer.max_message:
            raise ProcessSpawnError(
                f"cannot start {spec.argv[0]!r} in the sandbox: arguments and environment take {len(payload)} bytes",
                hint=f"at most {self._mux.peer.max_message} bytes can be given",
                details={"errno": errno.E2BIG},
            )
        try:
            with trio.fail_after(timeout):
                self._stream = await self._mux.open(payload, on_message=self.on_message)
                await self._stream.until(lambda: self._started is not None or self._failure is not None)
        except trio.TooSlowError:
            self._give_up()
            raise _too_slow(spec, timeout) from None
        except BaseException:
            self._give_up()
            raise
        if self._failure is not None:
            raise _spawn_error(spec, self._failure)

    def _give_up(self) -> None:
        if self._stream is not None:
            self._stream.reset("spawn given up")


class Agent:
    """The guest agent of one running sandbox. Obtained from `open_agent`; methods may be called concurrently."""

    def __init__(self, mux: Mux, control: MuxStream, ready: Ready, timeouts: AgentTimeouts) -> None:
        self._mux = mux
        self._control = control
        self._timeouts = timeouts
        self.ready = ready

    async def spawn(self, spec: ProcessSpec) -> AgentProcess:
        """Start a program; returns once it runs.

        Raises `ProcessSpawnError` (``details["errno"]``), `UsageError` for a spec that cannot be sent, `LinkError`.
        When cancelled, the program is killed if it was started.
        """
        process = AgentProcess(self._mux)
        await process.begin(spec, self._timeouts.spawn)
        return process

    async def power_off(self, grace: float) -> None:
        """Ask for the sandbox's end, and wait until the link is gone: SIGTERM, ``grace`` seconds, SIGKILL.

        Put a timeout around it; the backend kills what does not go. Does nothing if the link is gone already.
        """
        try:
            await self._control.send_message(wire.encode_power_off(grace))
        except LinkError:
            return
        await self._mux.wait_closed()

    async def resume(self) -> None:
        """Say that the machine stood still: its clock is set and its random number generator seeded anew.

        Elsewhere than in a machine of its own it does nothing. `open_agent` has the same effect. Raises
        `UnsupportedOperation` with an agent that cannot, `LinkError`.
        """
        if not self.ready.features & wire.Feature.RESUME:
            raise UnsupportedOperation("the guest agent of this sandbox is too old to be resumed")
        entropy = secrets.token_bytes(ENTROPY_BYTES)
        await self._control.send_message(wire.encode_resume(clock_ns=time.time_ns(), entropy=entropy))

    async def wait_closed(self) -> None:
        """Wait until the link has ended, whyever. `check` tells."""
        await self._mux.wait_closed()

    def check(self) -> None:
        """Raise the `LinkError` that ended the link, if it has ended."""
        self._mux.check()


@asynccontextmanager
async def open_agent(
    stream: trio.abc.Stream,
    *,
    tunnel_ports: Sequence[int],
    serve_tunnel: ServeTunnel,
    hostname: str | None = None,
    timeouts: AgentTimeouts | None = None,
    resync: bool = False,
) -> AsyncGenerator[Agent]:
    """Talk to the agent at the other end of ``stream``, which is closed at the end; processes are killed by that.

    Args:
        stream: the link that a sandbox backend gave.
        tunnel_ports: ports that the agent listens on inside, at 127.0.0.1 and ::1.
        serve_tunnel: called in a task of its own with each connection made there (a ``HalfCloseableStream``), closed
            when it returns. ``BrokenResourceError``, ``ClosedResourceError`` and `LinkError` out of it are taken as the
            connection's end, anything else ends this scope.
        hostname: set it inside.
        timeouts: how long to wait for what.
        resync: the stream may have served another connection before (a port of a virtual machine that is connected
            to anew).

    Raises:
        BootTimeout: no agent answers in time.
        BootFailed: the agent cannot listen on one of the ports.
        LinkClosed: the stream ended first.
        LinkError: what answers is no agent, or of another version.

    When the link ends later the body is not disturbed: whatever it calls next raises `LinkError`.
    """
    timeouts = timeouts or AgentTimeouts()
    limits = LinkLimits(ping_interval=timeouts.ping, dead_after=timeouts.silence, max_message=64 << 10)
    deadline = trio.current_time() + timeouts.boot
    try:
        with trio.fail_at(deadline):
            handshake = await shake_hands(stream, role=Role.INITIATOR, limits=limits, resync=resync)
    except trio.TooSlowError:
        await trio.aclose_forcefully(stream)
        raise _boot_timeout(timeouts) from None
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    async with (
        open_mux(stream, role=Role.INITIATOR, limits=limits, handshake=handshake) as mux,
        open_service_nursery() as nursery,
    ):
        control = await mux.open(
            wire.encode_configure(
                ports=tunnel_ports,
                dead_man=timeouts.dead_man,
                clock_ns=time.time_ns(),
                entropy=secrets.token_bytes(ENTROPY_BYTES),
                hostname=hostname,
            )
        )
        try:
            with trio.fail_at(deadline):
                ready = await _receive_ready(control)
        except trio.TooSlowError:
            raise _boot_timeout(timeouts) from None
        nursery.start_soon(_serve_control, control, mux, serve_tunnel)
        yield Agent(mux, control, ready, timeouts)


async def _receive_ready(control: MuxStream) -> Ready:
    match await control.receive():
        case Message(payload=payload) if isinstance(ready := wire.decode_control_message(payload), Ready):
            pass
        case Closed(reason=reason):
            raise LinkError(f"the guest agent refused its configuration: {reason!r}")
        case _:
            raise LinkError("the guest agent did not say READY first")
    if ready.version != wire.VERSION:
        raise LinkError(
            f"the guest agent speaks version {ready.version} of its protocol, this side speaks {wire.VERSION}",
            hint="install iii-core and iii-sandbox-guest of the same release",
        )
    if ready.listen_errors:
        raise BootFailed(
            f"the guest agent cannot listen inside the sandbox: {'; '.join(ready.listen_errors)}",
            hint="does the sandbox have a network of its own?",
        )
    return ready


async def _serve_control(control: MuxStream, mux: Mux, serve_tunnel: ServeTunnel) -> None:
    """Open a tunnel for each connection that the agent announces, until the link ends.

    At most `MAX_TUNNELS`: streams are left for processes. Further ones wait in the sandbox, for as long as the agent
    lets them.
    """
    slots = trio.Semaphore(MAX_TUNNELS)
    async with trio.open_nursery() as tunnels:
        try:
            while not isinstance(item := await control.receive(), Closed):
                message = wire.decode_control_message(item.payload) if isinstance(item, Message) else None
                if isinstance(message, Connection):
                    await slots.acquire()
                    tunnels.start_soon(_serve_connection, mux, message, serve_tunnel, slots)
        except LinkError as error:
            mux.fail(error)


async def _serve_connection(mux: Mux, connection: Connection, serve_tunnel: ServeTunnel, slots: trio.Semaphore) -> None:
    try:
        async with TunnelStream(await mux.open(wire.encode_tunnel(connection.id)), connection.port) as tunnel:
            await serve_tunnel(tunnel)
    except* (LinkError, trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    finally:
        slots.release()


def _boot_timeout(timeouts: AgentTimeouts) -> BootTimeout:
    return BootTimeout(
        f"the guest agent did not answer within {timeouts.boot} s",
        hint="the sandbox's console has what it said while booting",
    )


def _too_slow(spec: ProcessSpec, timeout: float) -> ProcessSpawnError:
    return ProcessSpawnError(
        f"starting {spec.argv[0]!r} in the sandbox took longer than {timeout} s",
        hint="is the sandbox short of memory or CPU, or full of processes?",
        details={"errno": errno.ETIMEDOUT},
    )


def _spawn_error(spec: ProcessSpec, failure: SpawnFailure) -> ProcessSpawnError:
    return ProcessSpawnError(
        f"cannot start {spec.argv[0]!r} in the sandbox: {failure.text or os.strerror(failure.errno)}",
        details={"errno": failure.errno},
    )
