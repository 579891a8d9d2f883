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

import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from iii_core.errors import BootFailed, BootTimeout, LinkError, UnsupportedOperation
from iii_core.link.handshake import shake_hands
from iii_core.link.limits import LinkLimits
from iii_core.link.mux import Closed, Message, Mux, MuxStream, Role, open_mux
from iii_core.link.nursery import open_service_nursery
from iii_core.sandbox import agent_wire as wire
from iii_core.sandbox.agent_connections import Connections, ServeTunnel
from iii_core.sandbox.agent_process import AgentProcess
from iii_core.sandbox.agent_tunnel import Traffic, TunnelStream, dial
from iii_core.sandbox.agent_wire import (
    Connection,
    ExitStatus,
    ProcessSpec,
    Ready,
    SandboxStats,
    StatsAnswer,
    TerminalSize,
)

__all__ = [
    "Agent",
    "AgentProcess",
    "AgentTimeouts",
    "ExitStatus",
    "ProcessSpec",
    "SandboxStats",
    "ServeTunnel",
    "TerminalSize",
    "open_agent",
]

ENTROPY_BYTES: Final = 64


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


class Agent:
    """The guest agent of one running sandbox. Obtained from `open_agent`; methods may be called concurrently.

    ``ready`` is what it said of itself, ``traffic`` counts what goes through its tunnels and dialled connections.
    """

    def __init__(
        self, mux: Mux, control: MuxStream, ready: Ready, timeouts: AgentTimeouts, connections: Connections
    ) -> None:
        self._mux = mux
        self._control = control
        self._timeouts = timeouts
        self._connections = connections
        self.ready = ready
        self.traffic = connections.traffic
        self._last_token = 0
        self._answers: dict[int, StatsAnswer | None] = {}  # None while it is waited for

    async def spawn(self, spec: ProcessSpec) -> AgentProcess:
        """Start a program; returns once it runs.

        Raises `ProcessSpawnError` (``details["errno"]``), `UsageError` for a spec that cannot be sent, `LinkError`.
        When cancelled, the program is killed if it was started.
        """
        payload = wire.encode_process(spec)
        return await self._begin(repr(spec.argv[0]), payload)

    async def adopt(self, key: str) -> AgentProcess:
        """Take over a process that was released under ``key``, over this link or an earlier one of the same sandbox.

        Its output goes on where it was left, and if it has ended meanwhile, that is told. Raises as `spawn` does
        (errno ESRCH: no process is kept under that key), and `UnsupportedOperation`. When cancelled, it may have been
        killed.
        """
        self._require(wire.Feature.ADOPT, "hand over its processes")
        return await self._begin(f"the process kept as {key!r}", wire.encode_adopt(key))

    @property
    def hands_over(self) -> bool:
        """Whether `AgentProcess.release` and `adopt` are known inside."""
        return bool(self.ready.features & wire.Feature.ADOPT)

    async def hold_connections(self, patience: float) -> None:
        """Cut all tunnels, and claim none until `let_in_connections`; see `Connections.hold`."""
        await self._connections.hold(patience)

    def let_in_connections(self) -> None:
        """Serve the connections that were held back. Not a checkpoint."""
        self._connections.let_in()

    async def copy_out(self, path: str, *, uid: int | None = None, gid: int | None = None) -> AgentProcess:
        """Pack a file or a folder inside: the archive is channel 1 of its output, complaints are channel 2.

        ``path`` is absolute or below ``/workspace``; ``uid`` and ``gid`` as for `ProcessSpec`. Exit code 0: all of it
        is there; 1: some is missing, the complaints say what. What the archive holds is the guest's: unpack it with
        `iii_core.sandbox.archive`. Raises as `spawn` does, and `UnsupportedOperation`.
        """
        return await self._copy(path, wire.Direction.OUT, uid, gid)

    async def copy_in(self, path: str, *, uid: int | None = None, gid: int | None = None) -> AgentProcess:
        """Unpack an archive that is sent as its input: into ``path`` if that is a folder, else as ``path``.

        Exit code 1: something could not be unpacked, and channel 2 says what. Else as `copy_out`.
        """
        return await self._copy(path, wire.Direction.IN, uid, gid)

    async def _copy(self, path: str, direction: wire.Direction, uid: int | None, gid: int | None) -> AgentProcess:
        self._require(wire.Feature.COPY, "copy files")
        payload = wire.encode_copy(path, direction, uid=uid, gid=gid)
        return await self._begin(f"copying {path!r}", payload)

    async def _begin(self, what: str, payload: bytes) -> AgentProcess:
        process = AgentProcess(self._mux)
        await process.begin(what, payload, self._timeouts.spawn)
        return process

    def _require(self, feature: wire.Feature, what: str) -> None:
        if not self.ready.features & feature:
            raise UnsupportedOperation(
                f"the guest agent of this sandbox is too old to {what}", hint="restart the worker"
            )

    async def power_off(self, grace: float) -> None:
        """Ask for the sandbox's end, and wait until the link is gone: SIGTERM, ``grace`` seconds, SIGKILL.

        Put a timeout around it; the backend kills what does not go. Does nothing if the link is gone already.
        """
        try:
            await self._control.send_message(wire.encode_power_off(grace))
        except LinkError:
            return
        await self._mux.wait_closed()

    async def stats(self) -> SandboxStats:
        """What the sandbox uses right now. Raises `UnsupportedOperation` with an agent that cannot say, `LinkError`.

        Waits for as long as the guest takes: put a timeout around it.
        """
        self._require(wire.Feature.STATS, "say what it uses")
        self._last_token = token = self._last_token + 1
        self._answers[token] = None
        try:
            await self._control.send_message(wire.encode_give_stats(token))
            await self._control.until(lambda: self._answers[token] is not None)
            answer = self._answers[token]
            assert answer is not None
            return answer.stats
        finally:
            del self._answers[token]

    async def dial(self, port: int) -> TunnelStream:
        """Connect to 127.0.0.1 (else ::1) at ``port`` inside. Close what is given.

        Raises ``ConnectionRefusedError`` with the guest's reason (nobody listens there), `UnsupportedOperation`,
        `UsageError`, `LinkError`. Put a timeout around it.
        """
        self._require(wire.Feature.DIAL, "be connected to")
        return await dial(self._mux, port, self.traffic)

    def on_answer(self, answer: StatsAnswer) -> None:
        """For `open_agent`: an answer to `stats` came, unless nobody waits for it any more."""
        if answer.token in self._answers:
            self._answers[answer.token] = answer
            self._control.notify()

    async def resume(self) -> None:
        """Say that the machine stood still: its clock is set and its random number generator seeded anew.

        Elsewhere than in a machine of its own it does nothing. `open_agent` has the same effect. Raises
        `UnsupportedOperation` with an agent that cannot, `LinkError`.
        """
        self._require(wire.Feature.RESUME, "be resumed")
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
        connections = Connections(mux, serve_tunnel, Traffic(), nursery)
        agent = Agent(mux, control, ready, timeouts, connections)
        nursery.start_soon(_serve_control, control, mux, agent, connections)
        yield agent


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


async def _serve_control(control: MuxStream, mux: Mux, agent: Agent, connections: Connections) -> None:
    """Take what the agent says by itself, until the link ends."""
    try:
        while not isinstance(item := await control.receive(), Closed):
            message = wire.decode_control_message(item.payload) if isinstance(item, Message) else None
            if isinstance(message, StatsAnswer):
                agent.on_answer(message)
            if isinstance(message, Connection):
                await connections.announced(message)
    except LinkError as error:
        mux.fail(error)


def _boot_timeout(timeouts: AgentTimeouts) -> BootTimeout:
    return BootTimeout(
        f"the guest agent did not answer within {timeouts.boot} s",
        hint="the sandbox's console has what it said while booting",
    )
