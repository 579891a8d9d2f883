"""The command's end of the control socket: one request to the engine of a project."""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import time
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, Any, Final, cast

from iii_core.errors import ControlError, EngineNotRunning, IIIError, InvocationError, LinkClosed, LinkError
from iii_core.project.locate import read_record

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Mapping

    from iii_core.link.mux import MuxStream
    from iii_core.project.locate import EngineRecord, Project

CONNECT_TIMEOUT: Final = 5.0
ENDING_TIME: Final = 0.2
_PEERCRED: Final = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid


class RemoteError(IIIError):
    """An error of the engine whose kind this program does not know; ``code`` is the engine's."""

    def __init__(self, code: str, message: str, *, hint: str | None, details: Mapping[str, Any] | None) -> None:
        super().__init__(message, hint=hint, details=details)
        self._code = code

    @property
    def code(self) -> str:
        """As the engine said."""
        return self._code


def request(
    project: Project,
    op: str,
    args: Mapping[str, Any] | None = None,
    *,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
) -> Any:
    """Ask the project's engine for ``op`` and give its result; blocks until there is one.

    Leaving early (an exception out of ``on_progress``, Ctrl-C) makes the engine cancel the operation.

    Raises:
        EngineNotRunning: the project has no engine, or it ended meanwhile.
        ControlError: what answers is not an engine of this user, or of another release.
        IIIError: of the kind that the engine reports.
    """
    from iii_core.link.blocking import converse

    try:
        with closing(connect(project)) as connection:
            for payload in converse(connection, encode_request(op, args)):
                message = decode(payload)
                if "progress" in message:
                    if on_progress is not None:
                        on_progress(cast("dict[str, Any]", message["progress"]))
                elif "event" not in message:
                    return result_of(message)
    except LinkError as error:
        raise _broken(error) from error
    raise engine_gone()


@asynccontextmanager
async def open_stream(project: Project, op: str, args: Mapping[str, Any]) -> AsyncGenerator[MuxStream]:
    """A streaming request: the stream carries what the operation says it does, its last message is for `result_of`.

    Leaving the block closes the stream. Raises as `request` does.
    """
    import trio

    from iii_core.link.mux import Role, open_mux

    connection = connect(project)
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(connection))
    async with open_mux(stream, role=Role.INITIATOR) as mux:
        opened = await mux.open(encode_request(op, args))
        try:
            yield opened
        finally:
            with trio.CancelScope(shield=True):  # queues a frame, waits for nothing
                await opened.close()


def connect(project: Project) -> socket.socket:
    """A connection to the control socket of the project's running engine.

    The socket must be ours alone (owner, mode 0600) and so must the process behind it: the record that names it lies in
    the project folder, which may have come from a stranger.

    Raises `EngineNotRunning`, `ControlError`.
    """
    record = read_record(project)
    if record is None:
        raise not_running()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        _check_owner(record.control)
        connection.settimeout(CONNECT_TIMEOUT)
        connection.connect(record.control)
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
        if _PEERCRED.unpack(credentials)[1] != os.geteuid():
            raise ControlError(f"the process behind {record.control} belongs to another user")
        connection.settimeout(None)
    except (FileNotFoundError, ConnectionError) as error:
        connection.close()
        time.sleep(ENDING_TIME)
        if read_record(project) == record:  # one that ends takes its record away first thing
            raise _unreachable(record) from error
        raise not_running() from error
    except (OSError, ValueError) as error:
        connection.close()
        raise ControlError(f"cannot connect to {record.control}: {error}") from error
    except BaseException:
        connection.close()
        raise
    return connection


def _unreachable(record: EngineRecord) -> ControlError:
    return ControlError(
        f"the engine of this project runs (pid {record.pid}), but its control socket {record.control} is gone",
        hint=f"end it with 'kill {record.pid}', which stops its workers in order, and start it again with 'iii'",
        details={"pid": record.pid, "control": record.control},
    )


def encode_request(op: str, args: Mapping[str, Any] | None) -> bytes:
    """The payload that opens a request's stream."""
    return json.dumps({"op": op, "args": dict(args or {})}).encode()


def decode(payload: bytes) -> dict[str, Any]:
    """One message of the engine. Raises `ControlError`."""
    try:
        message: object = json.loads(payload)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise ControlError(
            "the engine's answer is not understood", hint="restart the engine: is it of another release?"
        )
    return cast("dict[str, Any]", message)


def result_of(message: Mapping[str, Any]) -> Any:
    """The result in a final message. Raises the error in it, as its own kind where this program knows it."""
    if "error" in message:
        raise error_from(message["error"])
    return message.get("result")


def error_from(data: Any) -> IIIError:
    """The error that ``{"code", "message", "hint", "details"}`` describes."""
    code, message = str(data.get("code")), str(data.get("message"))
    hint, details = data.get("hint"), data.get("details")
    for kind in _kinds(IIIError):
        if kind.default_code == code and not issubclass(kind, (InvocationError, RemoteError)):
            return kind(message, hint=hint, details=details)
    return RemoteError(code, message, hint=hint, details=details)


def not_running() -> EngineNotRunning:
    """The error for a project without an engine."""
    return EngineNotRunning("the engine of this project is not running", hint="start it with 'iii' in another terminal")


def engine_gone() -> EngineNotRunning:
    """The error for an engine that ends before it has answered."""
    return EngineNotRunning("the engine ended before it answered", hint="start it again with 'iii'")


def _broken(error: LinkError) -> IIIError:
    return engine_gone() if isinstance(error, LinkClosed) else ControlError(error.message, hint=error.hint)


def _check_owner(path: str) -> None:
    found = os.lstat(path)
    if not stat.S_ISSOCK(found.st_mode):
        raise ControlError(f"{path} is not a socket")
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ControlError(f"{path} is not private to this user")


def _kinds(kind: type[IIIError]) -> Iterable[type[IIIError]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _kinds(subclass)
