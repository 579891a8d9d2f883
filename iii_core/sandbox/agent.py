"""The host's side of the guest agent: processes in a sandbox, and its connections to the engine.

Speaks ``docs/protocol/agent.md`` over the framed link. Every byte that comes from the guest is hostile: sizes are
bounded by the link's credit, and a guest that breaks a rule loses the link, which ends its sandbox.
"""

from __future__ import annotations

import signal as signals
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import trio

from iii_core.errors import BootTimeout, LinkClosed, LinkError, ProcessSpawnError
from iii_core.link.handshake import shake_hands
from iii_core.link.limits import LinkLimits
from iii_core.link.mux import Closed, Data, Eof, Mux, MuxStream, Role, open_mux
from iii_core.sandbox.agent_wire import VERSION, Configure, Fields, Kind, Process, Tag, encode
from iii_core.sandbox.tunnel import TunnelStream

__all__ = ["Agent", "AgentProcess", "AgentTimeouts", "ExitStatus", "ProcessSpec", "TerminalSize", "open_agent"]

ServeTunnel: TypeAlias = Callable[[trio.abc.Stream], Awaitable[None]]

STDIN: Final = 0
OUTPUT_CHANNELS: Final = frozenset({1, 2})
MAX_TUNNELS: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTimeouts:
    """Seconds. ``hello``: until a booting sandbox's agent answers; ``dead_man``: silence that ends both sides."""

    hello: float = 30.0
    ping: float = 5.0
    dead_man: float = 30.0


@dataclass(frozen=True, slots=True)
class TerminalSize:
    """In characters, 1 … 65535 each."""

    rows: int
    cols: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """What to run in a sandbox.

    Attributes:
        argv: program and arguments; the program is searched in ``env``'s PATH (``execvpe``), no shell.
        env: the whole environment.
        cwd: must exist; None is ``/workspace``.
        tty: give it a terminal of that size.
        uid, gid, groups: ids inside the sandbox; None is the agent's own.
        linger: seconds that the exit waits for the rest of the process group after its leader has ended.
        stdin: whether it gets a standard input (else ``/dev/null``).
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    cwd: str | None = None
    tty: TerminalSize | None = None
    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] = ()
    linger: float = 0.0
    stdin: bool = False


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended: ``code`` (0 … 255), or ``signal`` if one killed it."""

    code: int
    signal: int | None = None

    def as_shell(self) -> int:
        """What a shell would report: the code, or 128 + the signal."""
        return self.code if self.signal is None else 128 + self.signal

    def __str__(self) -> str:
        if self.signal is None:
            return f"exit {self.code}"
        known = {member.value: member.name for member in signals.Signals}
        return f"signal {self.signal}" + (f" ({known[self.signal]})" if self.signal in known else "")


class AgentProcess:
    """A process in a sandbox. From `Agent.spawn`.

    One task may read output while others send; everything raises `LinkClosed` when the sandbox is gone. A slow reader
    stalls this process and nothing else.
    """

    def __init__(self) -> None:
        self._stream: MuxStream | None = None
        self._started: Fields | None = None
        self._exit: ExitStatus | None = None
        self._open_channels = set(OUTPUT_CHANNELS)

    @property
    def pid(self) -> int:
        """The process id inside the sandbox."""
        assert self._started is not None
        return self._started.required(Tag.PID)

    async def send_stdin(self, data: bytes) -> None:
        """Send input; waits for room. Data for a process that has closed its stdin, or ended, is dropped."""
        try:
            await self._opened.send_data(STDIN, data)
        except LinkClosed:
            if self._exit is None:
                raise

    async def close_stdin(self) -> None:
        """Say that there is no more input. Idempotent."""
        try:
            await self._opened.send_eof(STDIN)
        except LinkClosed:
            if self._exit is None:
                raise

    async def receive_output(self) -> tuple[int, bytes] | None:
        """The next output as (1 for stdout or 2 for stderr, bytes); None once all output has come."""
        while True:
            match await self._opened.receive():
                case Data(channel=channel, data=data) if channel in OUTPUT_CHANNELS:
                    return channel, data
                case Eof(channel=channel):
                    self._open_channels.discard(channel)
                case Closed():
                    return None
                case other:
                    raise LinkError(f"the agent sent {type(other).__name__} on a process stream")

    async def wait(self) -> ExitStatus:
        """Wait until it has ended. Output must be read meanwhile, or a talkative process never ends."""
        await self._opened.until(lambda: self._exit is not None)
        assert self._exit is not None
        return self._exit

    async def signal(self, number: int) -> None:
        """Send a signal (1 … 64) to its process group; nothing happens once it has ended."""
        await self._tell(encode(Kind.SIGNAL, [(Tag.SIGNAL, number)]))

    async def resize(self, size: TerminalSize) -> None:
        """Change the size of its terminal."""
        await self._tell(encode(Kind.RESIZE, [(Process.ROWS, size.rows), (Process.COLS, size.cols)]))

    async def kill(self) -> None:
        """Kill its process group and forget the process. Idempotent; done even if cancelled."""
        await self._opened.close("killed")

    @property
    def _opened(self) -> MuxStream:
        assert self._stream is not None
        return self._stream

    async def _tell(self, payload: bytes) -> None:
        if self._exit is not None:
            await trio.lowlevel.checkpoint()
            return
        try:
            await self._opened.send_message(payload)
        except (LinkClosed, trio.ClosedResourceError):
            if self._exit is None:
                raise

    def _on_message(self, payload: bytes) -> None:
        fields = Fields(payload)
        match fields.kind:
            case Kind.STARTED | Kind.SPAWN_ERROR if self._started is None:
                self._started = fields
            case Kind.EXIT if self._started is not None and self._exit is None:
                number = fields.number(Tag.SIGNAL)
                self._exit = ExitStatus(0, number) if number is not None else ExitStatus(fields.required(Tag.CODE))
            case kind:
                raise LinkError(f"the agent sent message {kind} out of turn")

    async def start(self, mux: Mux, spec: ProcessSpec) -> None:
        """For `Agent.spawn`."""
        self._stream = await mux.open(_encode_process(spec), on_message=self._on_message)
        try:
            await self._stream.until(lambda: self._started is not None)
        except BaseException:
            self._stream.reset("cancelled")
            raise
        assert self._started is not None
        if self._started.kind == Kind.SPAWN_ERROR:
            await self._stream.close()
            raise _spawn_error(spec, self._started)


class Agent:
    """The agent of one sandbox. From `open_agent`; for any number of tasks."""

    def __init__(self, mux: Mux, nursery: trio.Nursery, serve_tunnel: ServeTunnel) -> None:
        self._mux = mux
        self._nursery = nursery
        self._serve_tunnel = serve_tunnel
        self._control: MuxStream | None = None
        self._ready: Fields | None = None
        self._tunnels = 0

    @property
    def listen_errors(self) -> list[str]:
        """What the agent could not listen on, in words."""
        return self._ready.texts(Tag.LISTEN_ERROR) if self._ready else []

    async def spawn(self, spec: ProcessSpec) -> AgentProcess:
        """Start a process. When cancelled, it was not started or is killed.

        Raises:
            ProcessSpawnError: ``details["errno"]`` says why (ENOENT, EACCES, …).
            LinkClosed: the sandbox is gone.
        """
        process = AgentProcess()
        await process.start(self._mux, spec)
        return process

    async def power_off(self, grace: float) -> None:
        """Ask everything in the sandbox to end, kill what is left after ``grace`` seconds; returns when it is gone.

        Waits for the link to end, without a bound of its own.
        """
        assert self._control is not None
        try:
            await self._control.send_message(encode(Kind.POWER_OFF, [(Tag.GRACE_MS, round(grace * 1000))]))
        except (LinkError, trio.ClosedResourceError):
            return
        await self._mux.wait_closed()

    async def wait_closed(self) -> None:
        """Wait until the sandbox is gone."""
        await self._mux.wait_closed()

    async def configure(self, ports: Sequence[int], dead_man: float) -> None:
        """For `open_agent`: say what the agent is to do, and wait until it is ready."""
        fields: list[tuple[int, int]] = [(Configure.PORT, port) for port in ports]
        fields.append((Configure.DEAD_MAN_MS, round(dead_man * 1000)))
        self._control = await self._mux.open(encode(Kind.CONTROL, fields), on_message=self._on_message)
        await self._control.until(lambda: self._ready is not None)
        assert self._ready is not None
        version = self._ready.required(Tag.VERSION)
        if version != VERSION:
            raise LinkError(
                f"the guest agent speaks version {version} of its protocol, this engine {VERSION}",
                hint="install guest and core of the same release",
            )

    def _on_message(self, payload: bytes) -> None:
        fields = Fields(payload)
        match fields.kind:
            case Kind.READY if self._ready is None:
                self._ready = fields
            case Kind.CONNECTION:
                self._accept(fields.required(Tag.CONNECTION_ID))
            case kind:
                raise LinkError(f"the agent sent message {kind} out of turn")

    def _accept(self, connection: int) -> None:
        if self._tunnels < MAX_TUNNELS:  # else it stays unclaimed, and the agent closes it
            self._tunnels += 1
            self._nursery.start_soon(self._tunnel, connection)

    async def _tunnel(self, connection: int) -> None:
        try:
            opened = await self._mux.open(encode(Kind.TUNNEL, [(Tag.CONNECTION_ID, connection)]))
            async with TunnelStream(opened) as stream:
                await self._serve_tunnel(stream)
        except LinkError:
            return  # the link says itself why it ended, to whoever waits for it
        finally:
            self._tunnels -= 1


@asynccontextmanager
async def open_agent(
    stream: trio.abc.Stream,
    *,
    tunnel_ports: Sequence[int],
    serve_tunnel: ServeTunnel,
    timeouts: AgentTimeouts | None = None,
) -> AsyncGenerator[Agent]:
    """Talk to the agent at the other end of ``stream``, which belongs to this from now on.

    Args:
        stream: the link of a sandbox that was just started; its agent may still be booting.
        tunnel_ports: where the agent listens inside, at 127.0.0.1 and ::1.
        serve_tunnel: runs in a task of its own for each connection made to such a port, with its byte stream.

    Raises:
        BootTimeout: no answer in time.
        LinkClosed: the sandbox ended first.
        LinkError: whoever answered is not an agent this host can talk to.
    """
    timeouts = timeouts or AgentTimeouts()
    limits = LinkLimits(ping_interval=timeouts.ping, dead_after=timeouts.dead_man)
    handshake = None
    try:
        with trio.move_on_after(timeouts.hello):
            handshake = await shake_hands(stream, role=Role.INITIATOR, limits=limits)
    finally:
        if handshake is None:
            await trio.aclose_forcefully(stream)
    if handshake is None:
        raise BootTimeout(
            f"the sandbox's agent did not answer within {timeouts.hello:g} s", hint="see the worker's console log"
        )
    async with (
        open_mux(stream, role=Role.INITIATOR, limits=limits, handshake=handshake) as mux,
        trio.open_nursery() as tunnels,
    ):
        agent = Agent(mux, tunnels, serve_tunnel)
        try:
            await agent.configure(tunnel_ports, timeouts.dead_man)
            yield agent
        finally:
            tunnels.cancel_scope.cancel()


def _encode_process(spec: ProcessSpec) -> bytes:
    fields: list[tuple[int, int | str]] = [(Process.ARG, argument) for argument in spec.argv]
    fields += [(Process.ENV, f"{key}={value}") for key, value in spec.env.items()]
    optional = {
        Process.CWD: spec.cwd,
        Process.ROWS: spec.tty.rows if spec.tty else None,
        Process.COLS: spec.tty.cols if spec.tty else None,
        Process.UID: spec.uid,
        Process.GID: spec.gid,
    }
    fields += [(tag, value) for tag, value in optional.items() if value is not None]
    fields += [(Process.GROUP, group) for group in spec.groups]
    fields += [(Process.LINGER_MS, round(spec.linger * 1000)), (Process.STDIN, int(spec.stdin))]
    return encode(Kind.PROCESS, fields)


def _spawn_error(spec: ProcessSpec, fields: Fields) -> ProcessSpawnError:
    text = " ".join(fields.texts(Tag.TEXT)) or "unknown reason"
    return ProcessSpawnError(
        f"cannot start {spec.argv[0]!r} in the sandbox: {text}",
        hint="check the program's path, its permissions and the working directory",
        details={"errno": fields.number(Tag.ERRNO)},
    )
