"""A guest agent without a guest: the acceptor's side of the agent protocol, with Python callables as programs.

It speaks ``docs/protocol/agent.md`` over a real byte stream, so everything above a sandbox's link is tested as it is.
What it leaves out needs a machine: terminals have a size and no line discipline, and there is no dead-man timer.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
import traceback
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import TypeAlias

import trio

from iii_core.errors import LinkError
from iii_core.link.limits import LinkLimits
from iii_core.link.mux import Closed, Data, Message, Mux, MuxStream, Role, open_mux
from iii_core.sandbox import agent_wire as wire
from iii_core.sandbox.agent_tunnel import TunnelStream
from iii_core.sandbox.agent_wire import ExitStatus, Kind, Tag, TerminalSize

CLAIM_TIMEOUT = 30.0
_STDOUT, _STDERR = 1, 2

Program: TypeAlias = Callable[["MemoryProcess"], Awaitable[int | None]]
"""A program: runs until it returns its exit code (None is 0); an exception is a traceback on stderr and exit 1."""

_Fields: TypeAlias = dict[int, list[bytes]]


class MemoryProcess:
    """What a program is given.

    Attributes:
        argv, env, cwd, uid: as the host asked for.
        size: of its terminal, or None without one; changes when the host resizes it.
        root: the folder that stands for the sandbox's writable layer.
    """

    def __init__(self, guest: MemoryGuest, stream: MuxStream, fields: _Fields, pid: int) -> None:
        self.argv = [value.decode() for value in fields[Tag.ARG]]
        self.env = dict(value.decode().split("=", 1) for value in fields.get(Tag.ENV, []))
        self.cwd = fields.get(Tag.CWD, [b"/workspace"])[-1].decode()
        self.uid = _number(fields, Tag.UID, 0)
        self.size = _size(fields)
        self.root = guest.root
        self.pid = pid
        self._guest = guest
        self._stream = stream
        self._scope = trio.CancelScope()
        self._signal: int | None = None
        self._traps: dict[int, trio.Event] = {}

    def path(self, inside: str) -> Path:
        """Where a file of the sandbox is; an absolute path, or one relative to `cwd`."""
        return self.root / os.path.normpath(PurePosixPath("/", self.cwd, inside)).lstrip("/")

    async def write(self, data: bytes | bytearray, *, channel: int = _STDOUT) -> None:
        """Write to stdout (1) or stderr (2); waits while nobody takes it."""
        await self._stream.send_data(_STDOUT if self.size is not None else channel, data)

    async def read(self) -> bytes:
        """The next input; empty at its end."""
        item = await self._stream.receive()
        if isinstance(item, Closed):  # the host gave the process up: no end of input, but a kill
            self.kill(signal.SIGKILL)
            await trio.lowlevel.checkpoint()
        return item.data if isinstance(item, Data) else b""

    def trap(self, number: int) -> trio.Event:
        """Catch a signal from now on: the event is set when it comes, and the process lives on. Not for SIGKILL."""
        return self._traps.setdefault(number, trio.Event())

    async def connect(self, port: int) -> trio.abc.HalfCloseableStream:
        """Connect to 127.0.0.1 inside: a tunnel to whoever talks to the agent. Raises ``ConnectionRefusedError``."""
        return await self._guest.connect(port)

    def kill(self, number: int) -> None:
        """What a signal does to it."""
        if number in self._traps and number != signal.SIGKILL:
            self._traps[number].set()
        else:
            self._signal = number
            self._scope.cancel()

    def take_message(self, payload: bytes) -> None:
        """For the agent: a message of the host on its stream."""
        kind, fields = _decode(payload)
        if kind == Kind.SIGNAL:
            self.kill(_number(fields, Tag.SIGNAL, 0))
        elif kind == Kind.RESIZE and self.size is not None:
            self.size = _size(fields)

    async def run(self, program: Program) -> ExitStatus:
        """For the agent: run to the end."""
        code: int | None = None
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._die_with_stream)
                code = await self._run_program(program)
                nursery.cancel_scope.cancel()
        if self._scope.cancelled_caught:
            return ExitStatus(0, self._signal)
        return ExitStatus((code or 0) & 0xFF)

    async def _run_program(self, program: Program) -> int | None:
        try:
            return await program(self)
        except Exception as error:  # a program may fail as it likes
            text = "".join(traceback.format_exception(error))
            await self.write(text.encode(), channel=_STDERR)
            return 1

    async def _die_with_stream(self) -> None:
        try:
            await self._stream.until(lambda: False)
        except LinkError:
            self.kill(signal.SIGKILL)


class MemoryGuest:
    """One booted guest. ``say`` writes a line on its console; ``root`` is its writable layer."""

    def __init__(self, programs: Mapping[str, Program], root: Path, say: Callable[[str], None]) -> None:
        self.root = root
        self._programs = programs
        self._say = say
        self._processes: set[MemoryProcess] = set()
        self._last_pid = 1
        self._ports: set[int] = set()
        self._control: MuxStream | None = None
        self._waiting: dict[int, _Connection] = {}
        self._last_connection = 0
        self._ended = trio.lowlevel.ParkingLot()
        self._exit = "exit 3"  # unless it is asked to power off, its link's end is its own

    async def run(self, stream: trio.abc.Stream) -> str:
        """Be the guest until it powers off or its link ends; how it ended (``exit 0``, ``exit 3``)."""
        try:
            async with open_mux(stream, role=Role.ACCEPTOR, limits=LinkLimits(max_message=64 << 10)) as mux:
                await self._serve(mux)
        except LinkError as error:
            self._say(f"agent: {error.message}")
        return self._exit

    async def _serve(self, mux: Mux) -> None:
        async with trio.open_nursery() as nursery:
            async for payload, stream in mux.incoming:
                kind, fields = _decode(payload)
                match kind:
                    case Kind.CONTROL:
                        nursery.start_soon(self._attend, stream, fields, nursery.cancel_scope)
                    case Kind.PROCESS:
                        nursery.start_soon(self._run_process, stream, fields)
                    case Kind.TUNNEL if waiting := self._waiting.pop(_number(fields, Tag.CONNECTION_ID, 0), None):
                        waiting.claim(stream)
                    case _:
                        stream.reset("there is no such thing here")
            nursery.cancel_scope.cancel()

    async def _attend(self, control: MuxStream, fields: _Fields, powered_off: trio.CancelScope) -> None:
        """The control stream."""
        self._control = control
        self._ports = {int.from_bytes(value, "little") for value in fields.get(Tag.PORT, [])}
        ready: list[wire.Field] = [(Tag.VERSION, wire.VERSION), (Tag.FEATURES, 0), (Tag.PID, 1)]
        try:
            await control.send_message(wire.encode(Kind.READY, ready))
            while not isinstance(item := await control.receive(), Closed):
                if isinstance(item, Message):
                    kind, fields = _decode(item.payload)
                    if kind == Kind.POWER_OFF:
                        await self._power_off(_number(fields, Tag.GRACE_MS, 0) / 1000)
                        powered_off.cancel()
                        return
        except LinkError:
            pass
        self._ports = set()

    async def _power_off(self, grace: float) -> None:
        for process in self._processes:
            process.kill(signal.SIGTERM)
        with trio.move_on_after(grace):
            while self._processes:
                await self._ended.park()
        self._exit = "exit 0"

    async def _run_process(self, stream: MuxStream, fields: _Fields) -> None:
        stream.hold_close()
        self._last_pid += 1
        process = MemoryProcess(self, stream, fields, self._last_pid)
        program = self._programs.get(process.argv[0].rsplit("/", 1)[-1])
        try:
            if program is None:
                failure: list[wire.Field] = [
                    (Tag.ERRNO, errno.ENOENT),
                    (Tag.TEXT, f"{process.argv[0]}: No such file or directory"),
                ]
                await stream.send_message(wire.encode(Kind.SPAWN_ERROR, failure))
            else:
                await self._run_to_the_end(process, program, stream)
        except LinkError:
            return  # the link is gone, and the guest with it
        await stream.close()

    async def _run_to_the_end(self, process: MemoryProcess, program: Program, stream: MuxStream) -> None:
        await stream.send_message(wire.encode(Kind.STARTED, [(Tag.PID, process.pid)]))
        stream.divert_messages(process.take_message)
        self._processes.add(process)
        try:
            status = await process.run(program)
        finally:
            self._processes.discard(process)
            self._ended.unpark_all()
        for channel in (_STDOUT,) if process.size is not None else (_STDOUT, _STDERR):
            await stream.send_eof(channel)
        end = (Tag.CODE, status.code) if status.signal is None else (Tag.SIGNAL, status.signal)
        await stream.send_message(wire.encode(Kind.EXIT, [end]))

    async def connect(self, port: int) -> trio.abc.HalfCloseableStream:
        """See `MemoryProcess.connect`."""
        if port not in self._ports or self._control is None:
            await trio.lowlevel.checkpoint()
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"nobody listens on port {port} in the sandbox")
        self._last_connection += 1
        number = self._last_connection
        waiting = self._waiting[number] = _Connection()
        try:
            message = wire.encode(Kind.CONNECTION, [(Tag.CONNECTION_ID, number), (Tag.PORT, port)])
            await self._control.send_message(message)
            with trio.fail_after(CLAIM_TIMEOUT):
                return TunnelStream(await waiting.claimed(), port)
        except (LinkError, trio.TooSlowError) as error:
            raise ConnectionResetError(errno.ECONNRESET, "the connection was not taken") from error
        finally:
            self._waiting.pop(number, None)


class _Connection:
    """A connection that was announced to the host."""

    def __init__(self) -> None:
        self._event = trio.Event()
        self._stream: MuxStream | None = None

    def claim(self, stream: MuxStream) -> None:
        self._stream = stream
        self._event.set()

    async def claimed(self) -> MuxStream:
        await self._event.wait()
        assert self._stream is not None
        return self._stream


def _decode(payload: bytes) -> tuple[int, _Fields]:
    """Kind and fields of a payload of the host's (``u16 tag | u32 length | value``)."""
    fields: _Fields = {}
    at = 1
    while at < len(payload):
        tag, size = struct.unpack_from("<HI", payload, at)
        at += 6
        fields.setdefault(tag, []).append(payload[at : at + size])
        at += size
    return payload[0], fields


def _number(fields: _Fields, tag: Tag, default: int) -> int:
    return int.from_bytes(fields[tag][-1], "little") if tag in fields else default


def _size(fields: _Fields) -> TerminalSize | None:
    if Tag.ROWS not in fields:
        return None
    return TerminalSize(rows=_number(fields, Tag.ROWS, 24), cols=_number(fields, Tag.COLS, 80))
