"""A guest agent without a guest: the acceptor's side of the agent protocol, with Python callables as programs.

It speaks ``docs/protocol/agent.md`` over a real byte stream, so everything above a sandbox's link is tested as it is.
What it leaves out needs a machine: terminals have a size and no line discipline, and there is no dead-man timer.
"""

from __future__ import annotations

import errno
import os
import signal
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import trio

from iii_core.errors import LinkError
from iii_core.link.limits import LinkLimits
from iii_core.link.mux import Closed, Data, Message, Mux, MuxStream, Role, open_mux
from iii_core.sandbox import agent_wire as wire
from iii_core.sandbox.agent_tunnel import TunnelStream
from iii_core.sandbox.agent_wire import ExitStatus, Feature, Kind, Tag
from iii_core.testing.memory_fields import Fields, decode, number_in, size_in

CLAIM_TIMEOUT = 30.0
_STDOUT, _STDERR = 1, 2

Program: TypeAlias = Callable[["MemoryProcess"], Awaitable[int | None]]
"""A program: runs until it returns its exit code (None is 0); an exception is a traceback on stderr and exit 1."""


class MemoryProcess:
    """What a program is given.

    Attributes:
        argv, env, cwd, uid: as the host asked for.
        size: of its terminal, or None without one; changes when the host resizes it.
        root: the folder that stands for the sandbox's writable layer.
        key: what it is kept under while no host has it.
        restored: it goes on from a saved state. A program here begins anew then, for want of a machine.
    """

    def __init__(self, guest: MemoryGuest, fields: Fields, pid: int, *, stream: MuxStream | None = None) -> None:
        self.argv = [value.decode() for value in fields[Tag.ARG]]
        self.env = dict(value.decode().split("=", 1) for value in fields.get(Tag.ENV, []))
        self.cwd = fields.get(Tag.CWD, [b"/workspace"])[-1].decode()
        self.uid = number_in(fields, Tag.UID, 0)
        self.size = size_in(fields)
        self.root = guest.root
        self.pid = pid
        self._guest = guest
        self._fields = fields
        self._stream = stream
        self._stream_changed = trio.lowlevel.ParkingLot()
        self._scope = trio.CancelScope()
        self.key: str | None = None
        self.restored = stream is None
        self._signal: int | None = None
        self._traps: dict[int, trio.Event] = {}

    def path(self, inside: str) -> Path:
        """Where a file of the sandbox is; an absolute path, or one relative to `cwd`."""
        return self.root / os.path.normpath(PurePosixPath("/", self.cwd, inside)).lstrip("/")

    async def write(self, data: bytes | bytearray, *, channel: int = _STDOUT) -> None:
        """Write to stdout (1) or stderr (2); waits while nobody takes it, or no host has this process.

        What waits for credit when the host lets go of the process is written again.
        """
        while True:
            stream = await self._host()
            try:
                await stream.send_data(_STDOUT if self.size is not None else channel, data)
                return
            except (LinkError, trio.ClosedResourceError):
                if self._stream is stream:
                    raise

    async def read(self) -> bytes:
        """The next input; empty at its end."""
        item = await (await self._host()).receive()
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
        kind, fields = decode(payload)
        if kind == Kind.SIGNAL:
            self.kill(number_in(fields, Tag.SIGNAL, 0))
        elif kind == Kind.RESIZE and self.size is not None:
            self.size = size_in(fields)
        elif kind == Kind.RELEASE and self._stream is not None:
            self._guest.keep(self, fields[Tag.KEY][-1].decode(), self._stream)
            self._stream = None

    def adopt(self, stream: MuxStream) -> None:
        """For the agent: another host has it now."""
        self.key, self._stream = None, stream
        stream.divert_messages(self.take_message)
        self._stream_changed.unpark_all()

    def as_json(self) -> dict[str, object]:
        """For the agent: what a saved state holds of it."""
        fields = {str(tag): [value.hex() for value in values] for tag, values in self._fields.items()}
        return {"pid": self.pid, "key": self.key, "fields": fields}

    def _has_left(self, stream: MuxStream) -> bool:
        return self._stream is not stream

    async def _host(self) -> MuxStream:
        """The stream of the host that has it, as soon as one does."""
        while self._stream is None:
            await self._stream_changed.park()
        return self._stream

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

    async def say_end(self, status: ExitStatus) -> None:
        """For the agent: tell the host how it ended, also one that comes later. Raises `LinkError`."""
        stream = await self._host()
        for channel in (_STDOUT,) if self.size is not None else (_STDOUT, _STDERR):
            await stream.send_eof(channel)
        end = (Tag.CODE, status.code) if status.signal is None else (Tag.SIGNAL, status.signal)
        await stream.send_message(wire.encode(Kind.EXIT, [end]))
        await stream.close()

    async def _run_program(self, program: Program) -> int | None:
        try:
            return await program(self)
        except Exception as error:  # a program may fail as it likes
            text = "".join(traceback.format_exception(error))
            await self.write(text.encode(), channel=_STDERR)
            return 1

    async def _die_with_stream(self) -> None:
        while True:
            stream = await self._host()
            try:
                await stream.until(partial(self._has_left, stream))
            except LinkError:
                if self._stream is stream:
                    return self.kill(signal.SIGKILL)


class MemoryGuest:
    """One booted guest. ``say`` writes a line on its console; ``root`` is its writable layer.

    ``saved`` are the processes of a saved state, which wait to be adopted.
    """

    def __init__(
        self,
        programs: Mapping[str, Program],
        root: Path,
        say: Callable[[str], None],
        saved: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        self.root = root
        self.links: deque[trio.abc.Stream] = deque()
        self._programs = programs
        self._say = say
        self._saved = [self._restore(process) for process in saved]
        self._processes: set[MemoryProcess] = set()
        self._last_pid = max((process.pid for process in self._saved), default=1)
        self._ports: set[int] = set()
        self._control: MuxStream | None = None
        self._configured = trio.lowlevel.ParkingLot()
        self._waiting: dict[int, _Connection] = {}
        self._last_connection = 0
        self._ended = trio.lowlevel.ParkingLot()
        self._exit = "exit 3"  # unless it is asked to power off, its link's end is its own
        self._nursery: trio.Nursery | None = None

    @property
    def kept(self) -> list[MemoryProcess]:
        """The processes that a host has released."""
        return [process for process in self._processes if process.key is not None]

    async def run(self) -> str:
        """Be the guest until it powers off or there is no further one of `links`; how it ended."""
        async with trio.open_nursery() as self._nursery:
            for process in self._saved:
                self._nursery.start_soon(self._run_to_the_end, process)
            while self.links and self._exit != "exit 0":
                await self._serve_link(self.links.popleft())
            self._nursery.cancel_scope.cancel()
        return self._exit

    async def _serve_link(self, stream: trio.abc.Stream) -> None:
        try:
            async with open_mux(stream, role=Role.ACCEPTOR, limits=LinkLimits(max_message=64 << 10)) as mux:
                await self._serve(mux)
        except LinkError as error:
            self._say(f"agent: {error.message}")

    async def _serve(self, mux: Mux) -> None:
        assert self._nursery is not None
        async with trio.open_nursery() as nursery:
            async for payload, stream in mux.incoming:
                kind, fields = decode(payload)
                match kind:
                    case Kind.CONTROL:
                        nursery.start_soon(self._attend, stream, fields, nursery.cancel_scope)
                    case Kind.PROCESS:
                        self._nursery.start_soon(self._begin, stream, fields)
                    case Kind.ADOPT:
                        self._nursery.start_soon(self._adopt, stream, fields[Tag.KEY][-1].decode())
                    case Kind.TUNNEL if waiting := self._waiting.pop(number_in(fields, Tag.CONNECTION_ID, 0), None):
                        waiting.claim(stream)
                    case _:
                        stream.reset("there is no such thing here")
            nursery.cancel_scope.cancel()

    async def _attend(self, control: MuxStream, fields: Fields, powered_off: trio.CancelScope) -> None:
        """The control stream."""
        ready: list[wire.Field] = [(Tag.VERSION, wire.VERSION), (Tag.FEATURES, Feature.ADOPT), (Tag.PID, 1)]
        try:
            await control.send_message(wire.encode(Kind.READY, ready))
            self._ports = {int.from_bytes(value, "little") for value in fields.get(Tag.PORT, [])}
            self._control = control
            self._configured.unpark_all()
            while not isinstance(item := await control.receive(), Closed):
                if isinstance(item, Message):
                    kind, fields = decode(item.payload)
                    if kind == Kind.POWER_OFF:
                        await self._power_off(number_in(fields, Tag.GRACE_MS, 0) / 1000)
                        powered_off.cancel()
                        return
            self._ports = set()
        except LinkError:
            pass
        finally:
            self._control = None

    async def _power_off(self, grace: float) -> None:
        for process in self._processes:
            process.kill(signal.SIGTERM)
        with trio.move_on_after(grace):
            while self._processes:
                await self._ended.park()
        self._exit = "exit 0"

    async def _begin(self, stream: MuxStream, fields: Fields) -> None:
        stream.hold_close()
        self._last_pid += 1
        process = MemoryProcess(self, fields, self._last_pid, stream=stream)
        if self._program_of(process) is None:
            await _refuse(stream, errno.ENOENT, f"{process.argv[0]}: No such file or directory")
            return
        with suppress(LinkError):
            await _tell_started(stream, process)
        stream.divert_messages(process.take_message)
        await self._run_to_the_end(process)

    def _program_of(self, process: MemoryProcess) -> Program | None:
        return self._programs.get(process.argv[0].rsplit("/", 1)[-1])

    def _restore(self, saved: Mapping[str, Any]) -> MemoryProcess:
        fields = {int(tag): [bytes.fromhex(value) for value in values] for tag, values in saved["fields"].items()}
        process = MemoryProcess(self, fields, saved["pid"])
        process.key = saved["key"]
        return process

    def keep(self, process: MemoryProcess, key: str, stream: MuxStream) -> None:
        """The host lets go of a process. Raises `LinkError` for a key that is taken."""
        if any(other.key == key for other in self._processes):
            raise LinkError(f"a process is kept under {key!r} already")
        process.key = key
        assert self._nursery is not None
        self._nursery.start_soon(stream.close)  # after what it has sent

    async def _adopt(self, stream: MuxStream, key: str) -> None:
        stream.hold_close()
        found = [process for process in self._processes if process.key == key]
        if not found:
            await _refuse(stream, errno.ESRCH, "no process is kept under that key")
            return
        with suppress(LinkError):
            await _tell_started(stream, found[0])
            found[0].adopt(stream)

    async def _run_to_the_end(self, process: MemoryProcess) -> None:
        program = self._program_of(process)
        assert program is not None
        self._processes.add(process)
        try:
            status = await process.run(program)
            await process.say_end(status)
        except LinkError:
            pass  # nobody is there to hear of it
        finally:
            self._processes.discard(process)
            self._ended.unpark_all()

    async def connect(self, port: int) -> trio.abc.HalfCloseableStream:
        """See `MemoryProcess.connect`."""
        await trio.lowlevel.checkpoint()
        if port not in self._ports:
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"nobody listens on port {port} in the sandbox")
        waiting = _Connection()
        with trio.move_on_after(CLAIM_TIMEOUT):
            while waiting.stream is None:
                await self._announce(waiting, port)
        if waiting.stream is None:
            raise ConnectionResetError(errno.ECONNRESET, "the connection was not taken")
        return TunnelStream(waiting.stream, port)

    async def _announce(self, waiting: _Connection, port: int) -> None:
        """Tell the host, and wait until it has claimed the connection, or until another one comes in its place."""
        while (control := self._control) is None:
            await self._configured.park()
        self._last_connection += 1
        number = self._last_connection
        self._waiting[number] = waiting
        waiting.changed = control.notify
        try:
            message = wire.encode(Kind.CONNECTION, [(Tag.CONNECTION_ID, number), (Tag.PORT, port)])
            await control.send_message(message)
            await control.until(lambda: waiting.stream is not None or self._control is not control)
        except LinkError:
            if self._control is control:
                self._control = None
        finally:
            self._waiting.pop(number, None)


class _Connection:
    """A connection that was announced to the host; ``changed`` is called when it has been claimed."""

    def __init__(self) -> None:
        self.stream: MuxStream | None = None
        self.changed: Callable[[], None] = lambda: None

    def claim(self, stream: MuxStream) -> None:
        self.stream = stream
        self.changed()


async def _tell_started(stream: MuxStream, process: MemoryProcess) -> None:
    await stream.send_message(wire.encode(Kind.STARTED, [(Tag.PID, process.pid)]))


async def _refuse(stream: MuxStream, number: int, text: str) -> None:
    with suppress(LinkError):
        await stream.send_message(wire.encode(Kind.SPAWN_ERROR, [(Tag.ERRNO, number), (Tag.TEXT, text)]))
        await stream.close()
