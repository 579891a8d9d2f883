"""`MemoryBackend`: a sandbox backend without sandboxes, for tests of everything that uses one.

It does what the port says, and its agent speaks the real protocol over a real socket, but a "process" is a Python
callable in this program. It passes the sandbox conformance kit, so a test that holds with it says something about real
backends::

    async def worker(process: MemoryProcess) -> int | None:
        stream = await process.connect(49134)   # the engine, through the tunnel
        ...

    backend = MemoryBackend({"my-worker": worker})
    async with open_inline_host({"memory": backend.record()}, context) as host:
        driver = await host.driver("memory")

Faults on demand: `MemoryBackend.boot_error`, `MemoryBackend.boot_delay`, `MemoryBackend.save_error`,
`MemoryBackend.save_delay`, `MemoryBackend.crash`.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio

from iii_core.errors import BootFailed, SandboxError, SandboxNotFound
from iii_core.records import NoConfig, OpenContext, ProbeResult, SandboxBackend
from iii_core.sandbox.background import open_background
from iii_core.sandbox.events import EventQueue
from iii_core.sandbox.port import (
    Capability,
    Isolation,
    Phase,
    SandboxDriver,
    SandboxEvent,
    SandboxSpec,
    SandboxState,
    check_supported,
)
from iii_core.testing.memory_agent import MemoryGuest, MemoryProcess, Program
from iii_core.testing.memory_programs import PROGRAMS
from iii_core.testing.memory_snapshots import new_folder, read_state, replace_layer, write_state

__all__ = ["MemoryBackend", "MemoryProcess", "Program"]

CAPABILITIES = frozenset({Capability.USER_RANGE, Capability.SNAPSHOT})
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
_CONSOLE_TAIL = 4096


class MemoryBackend:
    """Declares the backend and holds its faults; may be opened several times.

    Attributes:
        programs: what can be started inside, by the last part of ``argv[0]``; `memory_programs.PROGRAMS` come on top.
        boot_error: while set, boots fail with it as their console.
        boot_delay: seconds that a boot takes.
        save_error: while set, sandboxes cannot be saved, for that reason.
        save_delay: seconds that saving takes, in which there is no link; the end of the sandbox ends it too.
        saving: which sandboxes are being saved just now: their links are broken, and no state is there yet.
        probe_result: what the backend says of itself.
        single_user: what `SandboxState.single_user` says.
    """

    def __init__(self, programs: Mapping[str, Program] | None = None) -> None:
        self.programs: dict[str, Program] = {**PROGRAMS, **(programs or {})}
        self.boot_error: str | None = None
        self.boot_delay = 0.0
        self.save_error: str | None = None
        self.save_delay = 0.0
        self.saving: set[str] = set()
        self.probe_result = ProbeResult(ok=True)
        self.single_user = False
        self._drivers: set[_MemoryDriver] = set()

    def record(
        self, name: str = "memory", *, isolation: Isolation = Isolation.NONE, strength: int = 0
    ) -> SandboxBackend:
        """The record to give to a sandbox host or a plugin."""
        return SandboxBackend(
            name=name,
            summary="sandboxes in memory, for tests",
            isolation=isolation,
            strength=strength,
            capabilities=CAPABILITIES,
            probe=self._probe,
            open=self._open,
        )

    def crash(self, sandbox_id: str, exit: str = "signal 9") -> None:
        """Let a running sandbox end by itself. Raises ``KeyError`` if there is none of that id."""
        for driver in self._drivers:
            if driver.crash(sandbox_id, exit):
                return
        raise KeyError(sandbox_id)

    def freeze(self, sandbox_id: str) -> None:
        """Let a running sandbox stand still: it reads and says nothing any more. Raises ``KeyError`` as `crash`."""
        for driver in self._drivers:
            if driver.freeze(sandbox_id):
                return
        raise KeyError(sandbox_id)

    async def _probe(self, config: NoConfig, context: OpenContext) -> ProbeResult:
        await trio.lowlevel.checkpoint()
        return self.probe_result

    @asynccontextmanager
    async def _open(self, config: NoConfig, context: OpenContext) -> AsyncGenerator[SandboxDriver]:
        async with open_background() as nursery:
            driver = _MemoryDriver(self, nursery)
            self._drivers.add(driver)
            try:
                yield driver
            finally:
                self._drivers.discard(driver)
                driver.close()


class _Boot:
    """A running guest."""

    def __init__(self, guest: MemoryGuest) -> None:
        self.guest = guest
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.link: socket.socket | None = None
        self.current: trio.SocketStream | None = None
        self.exit = "signal 9"
        self.frozen = False

    def connect(self) -> None:
        """Make a link, in the place of the one before."""
        if self.link is not None:
            self.link.close()
        self.link, theirs = socket.socketpair()
        theirs.setblocking(False)
        before, self.current = self.current, trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
        self.guest.links.append(_BootStream(self.current, self))
        if before is not None:
            with suppress(OSError):  # it may be closed by now
                before.socket.shutdown(socket.SHUT_RDWR)


class _BootStream(trio.abc.Stream):
    """A guest's end of its link, over which nothing goes once it is frozen."""

    def __init__(self, stream: trio.SocketStream, boot: _Boot) -> None:
        self._stream = stream
        self._boot = boot

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._stream.receive_some(max_bytes)
        await self._thaw()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._thaw()
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def _thaw(self) -> None:
        if self._boot.frozen:
            await trio.sleep_forever()


class _Sandbox:
    def __init__(self, spec: SandboxSpec) -> None:
        self.spec = spec
        self.lock = trio.Lock()
        self.phase = Phase.CREATED
        self.boot: _Boot | None = None
        self.exit: str | None = None
        self.end_wanted = False
        self.destroyed = False

    def say(self, line: str) -> None:
        """Write a line on the console."""
        path = self.spec.console
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            os.write(descriptor, f"{line}\n".encode())
        finally:
            os.close(descriptor)

    def details(self) -> dict[str, str]:
        return {"backend": "memory", "sandbox": self.spec.id}


class _MemoryDriver(SandboxDriver):
    def __init__(self, backend: MemoryBackend, nursery: trio.Nursery) -> None:
        self._backend = backend
        self._nursery = nursery
        self._sandboxes: dict[str, _Sandbox] = {}
        self._queue = EventQueue()

    async def create(self, spec: SandboxSpec) -> None:
        await trio.lowlevel.checkpoint()
        if not _ID.match(spec.id):
            raise SandboxError(f"{spec.id!r} is no sandbox id")
        if spec.id in self._sandboxes:
            raise SandboxError(f"a sandbox {spec.id!r} exists already")
        check_supported(spec, CAPABILITIES, "memory")
        spec.writable_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._sandboxes[spec.id] = _Sandbox(spec)

    async def start(self, sandbox_id: str) -> None:
        async with self._about_to_boot(sandbox_id) as sandbox:
            self._boot(sandbox)

    async def restore(self, sandbox_id: str, folder: Path) -> None:
        async with self._about_to_boot(sandbox_id) as sandbox:
            processes = read_state(folder, sandbox.spec)
            replace_layer(folder, sandbox.spec)
            self._boot(sandbox, processes)

    @asynccontextmanager
    async def _about_to_boot(self, sandbox_id: str) -> AsyncGenerator[_Sandbox]:
        sandbox = self._find(sandbox_id)
        async with sandbox.lock:
            if sandbox.destroyed:
                raise SandboxNotFound(f"sandbox {sandbox_id!r} has been destroyed", details=sandbox.details())
            if sandbox.phase is Phase.RUNNING:
                raise SandboxError(f"sandbox {sandbox_id!r} runs already", details=sandbox.details())
            sandbox.say("memory: booting")
            await trio.sleep(self._backend.boot_delay)
            if self._backend.boot_error is not None:
                sandbox.say(self._backend.boot_error)
                raise BootFailed(
                    f"sandbox {sandbox_id!r} ended while booting: {self._backend.boot_error}",
                    details={**sandbox.details(), "console": self._backend.boot_error},
                )
            yield sandbox

    def _boot(self, sandbox: _Sandbox, processes: list[dict[str, Any]] | None = None) -> None:
        sandbox.end_wanted = False
        sandbox.phase = Phase.RUNNING
        guest = MemoryGuest(self._backend.programs, sandbox.spec.writable_dir, sandbox.say, processes or ())
        sandbox.boot = _Boot(guest)
        sandbox.boot.connect()
        self._nursery.start_soon(self._run, sandbox, sandbox.boot)

    async def _run(self, sandbox: _Sandbox, boot: _Boot) -> None:
        try:
            with boot.scope:
                boot.exit = await boot.guest.run()
        finally:
            if boot.current is not None:
                boot.current.socket.close()  # it may have been cancelled before it was the guest's
            if boot.link is not None:
                boot.link.close()
                boot.link = None
            sandbox.phase, sandbox.exit = Phase.STOPPED, boot.exit
            sandbox.boot = None
            boot.ended.set()
            if not sandbox.end_wanted:
                tail = sandbox.spec.console.read_bytes()[-_CONSOLE_TAIL:].decode(errors="replace")
                self._queue.publish(SandboxEvent(id=sandbox.spec.id, exit=boot.exit, console_tail=tail))

    async def save(self, sandbox_id: str, folder: Path) -> None:
        sandbox = self._find(sandbox_id)
        async with sandbox.lock:
            boot = sandbox.boot
            if boot is None:
                raise SandboxError(f"sandbox {sandbox_id!r} does not run", details=sandbox.details())
            if self._backend.save_error is not None:
                raise SandboxError(self._backend.save_error, details=sandbox.details())
            with new_folder(folder) as fresh:
                boot.connect()
                write_state(fresh, sandbox.spec, [process.as_json() for process in boot.guest.kept])
                self._backend.saving.add(sandbox_id)
                try:
                    with trio.move_on_after(self._backend.save_delay):
                        await boot.ended.wait()
                finally:
                    self._backend.saving.discard(sandbox_id)
                if boot.ended.is_set():
                    raise SandboxError(f"sandbox {sandbox_id!r} ended while it was saved", details=sandbox.details())

    async def link(self, sandbox_id: str) -> socket.socket:
        await trio.lowlevel.checkpoint()
        boot = self._find(sandbox_id).boot
        if boot is None or boot.link is None:
            raise SandboxError(f"the link of sandbox {sandbox_id!r} is not to be had: no boot, or taken already")
        link, boot.link = boot.link, None
        return link

    async def stop(self, sandbox_id: str, *, grace: float) -> None:
        sandbox = self._find(sandbox_id)
        async with sandbox.lock:
            boot = sandbox.boot
            if boot is None:
                return
            sandbox.end_wanted = True
            try:
                with trio.move_on_after(max(0.0, grace)):
                    await boot.ended.wait()
            except trio.Cancelled:
                sandbox.end_wanted = False  # it runs on
                raise
            await _kill(boot)

    async def destroy(self, sandbox_id: str, *, keep_writable: bool) -> None:
        await trio.lowlevel.checkpoint()
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None:
            return
        async with sandbox.lock:
            if sandbox.destroyed:
                return
            sandbox.end_wanted = True
            if sandbox.boot is not None:
                await _kill(sandbox.boot)
            sandbox.destroyed = True
            del self._sandboxes[sandbox_id]
            if not keep_writable:
                shutil.rmtree(sandbox.spec.writable_dir, ignore_errors=True)

    async def state(self, sandbox_id: str) -> SandboxState:
        await trio.lowlevel.checkpoint()
        sandbox = self._find(sandbox_id)
        limits = {
            "CPU": sandbox.spec.limits.cpus,
            "memory": sandbox.spec.limits.memory_mib,
            "process": sandbox.spec.limits.pids,
        }
        return SandboxState(
            phase=sandbox.phase,
            exit=None if sandbox.phase is Phase.RUNNING else sandbox.exit,
            unenforced=tuple(f"{name} limit {value:g}" for name, value in limits.items() if value is not None),
            single_user=self._backend.single_user,
        )

    def events(self) -> trio.MemoryReceiveChannel[SandboxEvent]:
        return self._queue.receiver

    def crash(self, sandbox_id: str, exit: str) -> bool:
        """End a running sandbox from inside; whether there is one."""
        boot = self._sandboxes[sandbox_id].boot if sandbox_id in self._sandboxes else None
        if boot is None:
            return False
        boot.exit = exit
        boot.scope.cancel()
        return True

    def freeze(self, sandbox_id: str) -> bool:
        """Let a running sandbox stand still; whether there is one."""
        boot = self._sandboxes[sandbox_id].boot if sandbox_id in self._sandboxes else None
        if boot is None:
            return False
        boot.frozen = True
        return True

    def close(self) -> None:
        """All sandboxes end with the nursery; nobody asked about each."""
        for sandbox in self._sandboxes.values():
            sandbox.end_wanted = True
        self._queue.close()

    def _find(self, sandbox_id: str) -> _Sandbox:
        if sandbox_id not in self._sandboxes:
            raise SandboxNotFound(f"there is no sandbox {sandbox_id!r}", details={"sandbox": sandbox_id})
        return self._sandboxes[sandbox_id]


async def _kill(boot: _Boot) -> None:
    boot.scope.cancel()
    with trio.CancelScope(shield=True):
        await boot.ended.wait()
