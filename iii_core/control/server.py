"""The engine's end of the control socket."""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
import trio

from iii_core.errors import ControlError, IIIError, LinkClosed, LinkError, UsageError, leading_error
from iii_core.link.accept import Acceptor
from iii_core.link.mux import Closed, Role, open_mux

if TYPE_CHECKING:
    from pathlib import Path

    from iii_core.images.port import Progress
    from iii_core.link.mux import MuxStream

_log = logging.getLogger(__name__)

MAX_CLIENTS: Final = 64
PROGRESS_BACKLOG: Final = 64
_PEERCRED: Final = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid


class Request(msgspec.Struct, frozen=True):
    """What a client asks for."""

    op: str
    args: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Call:
    """One request being served.

    Attributes:
        args: the request's arguments, not yet checked.
        stream: for streaming operations, which read and write it themselves.
        report: tells the client how far things are; never waits, drops what a slow client cannot take.
    """

    args: dict[str, Any]
    stream: MuxStream
    report: Callable[[Progress], None]


Handler: TypeAlias = Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Operation:
    """A handler and whether it reads its stream itself (else the client's leaving cancels it)."""

    handle: Handler
    streaming: bool = False


async def serve_control(
    path: Path,
    operations: Mapping[str, Operation],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the control socket at ``path`` until cancelled; ``started`` once it accepts. Removes it at the end.

    The caller holds the project's engine lock, so a socket that is there already is a dead one and is replaced.
    """
    listener = _bind(path)
    acceptor = Acceptor(listener, name="control socket", slots=trio.Semaphore(MAX_CLIENTS), spare=False)

    async def serve_client(stream: trio.SocketStream) -> None:
        await _serve_client(stream, operations)

    try:
        async with trio.open_nursery() as nursery:
            task_status.started()
            await acceptor.run(serve_client, nursery)
    finally:
        _unlink(path)


def _bind(path: Path) -> trio.SocketListener:
    _unlink(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw:
        raw.bind(str(path))
        path.chmod(0o600)
        raw.listen(16)
        raw.setblocking(False)
        return trio.SocketListener(trio.socket.from_stdlib_socket(raw.dup()))


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)


async def _serve_client(stream: trio.SocketStream, operations: Mapping[str, Operation]) -> None:
    uid = _PEERCRED.unpack(stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))[1]
    if uid not in (os.geteuid(), 0):
        _log.warning("refused a control connection of user %d", uid)
        return
    try:
        async with open_mux(stream, role=Role.ACCEPTOR) as mux, trio.open_nursery() as nursery:
            async for payload, opened in mux.incoming:
                nursery.start_soon(_serve_request, payload, opened, operations)
            nursery.cancel_scope.cancel()  # the client is gone, and so is the point of what it asked for
    except* (LinkError, trio.BrokenResourceError) as group:
        _log.debug("control connection ended: %s", leading_error(group))


async def _serve_request(payload: bytes, stream: MuxStream, operations: Mapping[str, Operation]) -> None:
    try:
        answer = {"result": await _perform(payload, stream, operations)}
    except Exception as error:
        answer = {"error": describe(leading_error(error))}
    with suppress(LinkError):  # the client is gone; there is nobody to tell
        await _send_answer(stream, msgspec.json.encode(answer))
        await stream.close()


async def _send_answer(stream: MuxStream, answer: bytes) -> None:
    try:
        await stream.send_message(answer)
    except UsageError as error:
        too_long = ControlError(
            f"the engine's answer is longer than a command takes ({error.message})",
            hint="the engine goes on; ask it for less, such as for one worker",
        )
        await stream.send_message(msgspec.json.encode({"error": describe(too_long)}))


async def _perform(payload: bytes, stream: MuxStream, operations: Mapping[str, Operation]) -> Any:
    try:
        request = msgspec.json.decode(payload, type=Request)
    except msgspec.DecodeError as error:
        raise UsageError(f"malformed control request: {error}") from error
    operation = operations.get(request.op)
    if operation is None:
        raise UsageError(
            f"this engine has no operation {request.op!r}", hint="is the command newer than the running engine?"
        )
    send, receive = trio.open_memory_channel[bytes](PROGRESS_BACKLOG)

    def report(step: Progress) -> None:
        with suppress(trio.WouldBlock):
            send.send_nowait(msgspec.json.encode({"progress": asdict(step)}))

    finished = False
    result: Any = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_send_all, receive, stream)
        if not operation.streaming:
            nursery.start_soon(_cancel_when_left, stream, nursery.cancel_scope)
        async with send:
            result = await operation.handle(Call(args=request.args, stream=stream, report=report))
        finished = True
        nursery.cancel_scope.cancel()
    if not finished:
        raise LinkClosed("the client left")
    return result


async def _send_all(receive: trio.MemoryReceiveChannel[bytes], stream: MuxStream) -> None:
    async with receive:
        async for message in receive:
            await stream.send_message(message)


async def _cancel_when_left(stream: MuxStream, scope: trio.CancelScope) -> None:
    while not isinstance(await stream.receive(), Closed):
        pass
    scope.cancel()


def describe(error: BaseException) -> dict[str, Any]:
    """An error as the control socket carries it; what is not an `IIIError` is logged here and named internal."""
    if isinstance(error, IIIError):
        return {"code": error.code, "message": error.message, "hint": error.hint, "details": error.details}
    _log.error("internal error", exc_info=error)
    return {
        "code": IIIError.default_code,
        "message": f"internal error: {type(error).__name__}: {error}",
        "hint": "the engine's own output has the details",
        "details": {},
    }
