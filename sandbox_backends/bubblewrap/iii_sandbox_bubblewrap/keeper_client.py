"""The driver's side of the namespace keeper: starts the process, asks it things, hears of ends."""

from __future__ import annotations

import json
import os
import socket
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import trio

from iii_core.errors import BackendUnavailable, SandboxError
from iii_core.sandbox.background import open_background
from iii_core.sandbox.bare_python import bare_python
from iii_core.sandbox.host_processes import ProcessRecords, spawn
from iii_sandbox_bubblewrap.keeper import wire
from iii_sandbox_bubblewrap.remedies import namespace_remedy, remedy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from iii_core.records import OpenContext
    from iii_sandbox_bubblewrap.policy import Settings

_STARTUP_TIMEOUT = 15.0  # sooner than a boot, which may wait for it
_END_TIMEOUT = 10.0

OnEvent: TypeAlias = "Callable[[dict[str, Any], list[int]], None]"


class KeeperGone(SandboxError):
    """The keeper has ended, and with it every sandbox it held."""

    def __init__(self) -> None:
        super().__init__(
            "the process that holds the sandboxes' mounts is gone, and every bubblewrap sandbox with it",
            hint="the sandbox host's log may say why; start the workers again",
        )


class _Pending:
    def __init__(self) -> None:
        self.done = trio.Event()
        self.answer: dict[str, Any] = {}


class KeeperClient:
    """Requests may be made concurrently. ``on_event`` is called for each step of a boot and owns what comes with it."""

    def __init__(self, sock: socket.socket, facts: dict[str, Any], on_event: OnEvent) -> None:
        self._sock = trio.socket.from_stdlib_socket(sock)
        self._on_event = on_event
        self._sending = trio.Lock()
        self._last_id = 0
        self._pending: dict[int, _Pending] = {}
        self._gone = trio.Event()
        self.privileged: bool = facts["privileged"]
        self.ranged: bool = facts["ranged"]
        self.root: int = facts["root"][0]

    @property
    def gone(self) -> bool:
        """Whether the keeper has ended."""
        return self._gone.is_set()

    async def wait_gone(self) -> None:
        """Wait until it has."""
        await self._gone.wait()

    def next_id(self) -> int:
        """A number for the next request; a boot is known by the number of its request."""
        self._last_id += 1
        return self._last_id

    async def request(
        self,
        op: str,
        descriptors: Sequence[int] = (),
        *,
        number: int | None = None,
        shield: bool = True,
        **fields: Any,
    ) -> dict[str, Any]:
        """Ask and wait for the answer, even if cancelled (``shield``): the keeper answers soon, or is gone.

        Raises:
            KeeperGone: it has ended.
            SandboxError: it refused.
        """
        number = self.next_id() if number is None else number
        waiting = self._pending[number] = _Pending()
        try:
            with trio.CancelScope(shield=shield):
                await self._send({"id": number, "op": op, **fields}, descriptors)
                await waiting.done.wait()
        finally:
            del self._pending[number]
        if not waiting.answer:
            raise KeeperGone
        if "error" in waiting.answer:
            problem = waiting.answer["error"]
            raise SandboxError(f"the namespace keeper cannot {op}: {problem}", hint=remedy(problem))
        return waiting.answer

    async def _send(self, message: dict[str, Any], descriptors: Sequence[int]) -> None:
        if self.gone:
            raise KeeperGone
        async with self._sending:
            try:
                await self._sock.sendmsg(*wire.encode(message, descriptors))
            except (OSError, trio.ClosedResourceError) as error:
                raise KeeperGone from error

    async def run(self) -> None:
        """Take answers and events until the keeper is gone."""
        try:
            while True:
                try:
                    data, ancillary, _, _ = await self._sock.recvmsg(
                        wire.MAX_MESSAGE, wire.ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC
                    )
                except OSError:
                    return
                if not data:
                    return
                self._dispatch(*wire.decode(data, ancillary))
        finally:
            self._gone.set()
            for waiting in self._pending.values():
                waiting.done.set()

    def _dispatch(self, message: dict[str, Any], descriptors: list[int]) -> None:
        waiting = self._pending.get(message.get("id", 0))
        if waiting is not None:
            waiting.answer = message
            waiting.done.set()
        elif "boot" in message:
            self._on_event(message, descriptors)
            return
        for descriptor in descriptors:
            os.close(descriptor)


@asynccontextmanager
async def open_keeper(settings: Settings, context: OpenContext, on_event: OnEvent) -> AsyncGenerator[KeeperClient]:
    """Start a keeper; it and everything below it ends with the block.

    Raises:
        BackendUnavailable: it cannot enter its namespaces.
    """
    folder = context.runtime_dir / "bubblewrap-images"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    told = {
        "folder": str(folder),
        "unprivileged": settings.unprivileged,
        "id_base": settings.id_base,
        "subuid": subordinate_ids(Path("/etc/subuid"), os.getuid()),
        "subgid": subordinate_ids(Path("/etc/subgid"), os.getuid()),
    }
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            process = spawn(
                bare_python(
                    "iii_sandbox_bubblewrap.keeper.service",
                    str(theirs.fileno()),
                    json.dumps(told),
                    packages=("iii_sandbox_gate",),
                ),
                pass_fds=(theirs.fileno(),),
                stderr=2,
                env={"PATH": context.environ.get("PATH", os.defpath)},
                records=ProcessRecords(context.runtime_dir / "processes"),
            )
        try:
            facts, init = await _greeting(ours)
            try:
                async with open_background() as nursery:
                    client = KeeperClient(ours, facts, on_event)
                    nursery.start_soon(client.run)
                    yield client
            finally:
                process.end()
                with trio.move_on_after(_END_TIMEOUT, shield=True):
                    await _wait_ended(init)
        finally:
            process.end()


async def _greeting(sock: socket.socket) -> tuple[dict[str, Any], int]:
    """The keeper's first message, and a pidfd of its process. Raises `BackendUnavailable`."""
    facts: dict[str, Any] = {"error": f"no answer within {_STARTUP_TIMEOUT:g} s"}
    with trio.socket.from_stdlib_socket(sock.dup()) as reader, trio.move_on_after(_STARTUP_TIMEOUT):
        data, ancillary, _, _ = await reader.recvmsg(wire.MAX_MESSAGE, wire.ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC)
        if data:
            facts, descriptors = wire.decode(data, ancillary)
            if descriptors:
                return facts, descriptors[0]
        else:
            facts = {"error": "the namespace keeper ended at once"}
    raise BackendUnavailable(
        f"namespaces for sandboxes cannot be made: {facts['error']}",
        hint=remedy(str(facts["error"])) or namespace_remedy(),
    )


async def _wait_ended(init: int) -> None:
    """Wait for the end of the keeper's pid namespace: its first process ends when all others have."""
    try:
        await trio.lowlevel.wait_readable(init)
    finally:
        os.close(init)


def subordinate_ids(table: Path, uid: int) -> tuple[int, int] | None:
    """The first range of a user in ``/etc/subuid`` (``subuid(5)``): (first, count)."""
    import pwd

    names = {str(uid)}
    with suppress(KeyError):
        names.add(pwd.getpwuid(uid).pw_name)
    try:
        lines = table.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        parts = line.split(":")
        if len(parts) == 3 and parts[0] in names and parts[1].isdecimal() and parts[2].isdecimal() and int(parts[2]):
            return int(parts[1]), int(parts[2])
    return None
