"""Messages between the engine and its sandbox host: one JSON document per datagram, with file descriptors beside it.

The socket is ``AF_UNIX``/``SOCK_SEQPACKET``: it keeps message borders, delivers in order, reports the peer's end, and
carries descriptors (``unix(7)``, ``SCM_RIGHTS``). Both ends are programs of ours, of the same version, so there is no
negotiation; a message that does not decode means a bug and ends the connection.
"""

from __future__ import annotations

import array
import os
import socket
from pathlib import PurePath
from typing import Any, TypeAlias

import msgspec
import trio

from iii_core.errors import IIIError, InvocationError, LinkClosed, LinkError, SandboxError
from iii_core.project.files import hint_for

MAX_MESSAGE = 64 * 1024
MAX_DESCRIPTORS = 4


class Open(msgspec.Struct, frozen=True, tag="open"):
    """First message to the host: where to keep things, and the settings of each backend."""

    state_dir: str
    runtime_dir: str
    home: str
    config: dict[str, Any]


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The host's answer to `Open`: it serves calls now."""

    pid: int


class Call(msgspec.Struct, frozen=True, tag="call"):
    """A call of ``method`` on ``backend``; answered by exactly one `Reply` of the same ``id``, even if cancelled."""

    id: int
    backend: str
    method: str
    params: dict[str, Any]


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """The caller no longer wants call ``id``; it still waits for the reply, to know where things stand."""

    id: int


class Failure(msgspec.Struct, frozen=True):
    """An error in transit: ``codes`` from the error's own class up to the base class."""

    codes: list[str]
    message: str
    hint: str | None
    details: dict[str, Any]


class Reply(msgspec.Struct, frozen=True, tag="reply"):
    """The end of a call: a result (with a descriptor beside it, for ``link``) or a failure."""

    id: int
    result: Any = None
    failure: Failure | None = None
    cancelled: bool = False


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """A `SandboxEvent` of ``backend``."""

    backend: str
    id: str
    exit: str
    console_tail: str


AnyMessage: TypeAlias = Open | Ready | Call | Cancel | Reply | Ended


class MessageSocket:
    """One end of the connection; owns the socket. ``send`` may be called concurrently, ``receive`` by one task."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = trio.socket.from_stdlib_socket(sock)
        self._sending = trio.Lock()
        self._encoder = msgspec.json.Encoder(enc_hook=_encode_other)
        self._decoder: msgspec.json.Decoder[AnyMessage] = msgspec.json.Decoder(AnyMessage)

    async def send(self, message: AnyMessage, descriptors: tuple[int, ...] = ()) -> None:
        """Send one message whole or, if cancelled, not at all; the caller keeps its own copies of the descriptors.

        Raises:
            LinkClosed: the peer is gone.
            LinkError: the message is over `MAX_MESSAGE` bytes.
        """
        data = self._encoder.encode(message)
        if len(data) > MAX_MESSAGE:
            raise LinkError(f"a message of {len(data)} bytes is over the sandbox host's limit of {MAX_MESSAGE}")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        async with self._sending:
            try:
                await self._sock.sendmsg([data], rights)
            except OSError as error:
                raise LinkClosed(f"the sandbox host connection broke: {error.strerror}") from error
            except trio.ClosedResourceError as error:
                raise LinkClosed("the sandbox host connection is closed") from error

    async def receive(self) -> tuple[AnyMessage, list[int]]:
        """The next message and the descriptors that came with it (close-on-exec; now the caller's).

        Raises:
            LinkClosed: the peer is gone.
            LinkError: the message is not one of ours; the connection is unusable now.
        """
        try:
            data, ancillary, flags, _ = await self._sock.recvmsg(
                MAX_MESSAGE, socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC
            )
        except (OSError, trio.ClosedResourceError) as error:
            raise LinkClosed(f"the sandbox host connection broke: {error}") from error
        descriptors = _descriptors(ancillary)
        try:
            message = self._decode(data, flags)
        except LinkError:
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        return message, descriptors

    def _decode(self, data: bytes, flags: int) -> AnyMessage:
        if not data:
            raise LinkClosed("the sandbox host connection ended")
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise LinkError("a message on the sandbox host connection is over its limit")
        try:
            return self._decoder.decode(data)
        except msgspec.MsgspecError as error:
            raise LinkError(f"malformed message on the sandbox host connection: {error}") from error

    def close(self) -> None:
        """Close; a blocked ``receive`` raises `LinkClosed`. Idempotent."""
        self._sock.close()


def failure_of(error: BaseException) -> Failure:
    """How an error crosses. What is not an `IIIError` crosses as a plain `SandboxError`: a full disk, or else a bug."""
    if isinstance(error, OSError) and (hint := hint_for(error)) is not None:
        at = f" {error.filename}" if error.filename is not None else ""
        error = SandboxError(f"the sandbox backend cannot write{at}: {error.strerror}", hint=hint)
    if not isinstance(error, IIIError):
        error = SandboxError(
            f"internal error of the sandbox backend: {type(error).__name__}: {error}",
            hint="the sandbox host's log has the traceback; please report it",
        )
    codes = [cls.default_code for cls in type(error).__mro__ if issubclass(cls, IIIError)]
    return Failure(codes=codes, message=error.message, hint=error.hint, details=error.details)


def error_from(failure: Failure) -> IIIError:
    """The error again, as its own class or, where this process does not know that one, its nearest known base."""
    classes = _classes_by_code()
    for code in failure.codes:
        if code in classes:
            return classes[code](failure.message, hint=failure.hint, details=failure.details)
    return SandboxError(failure.message, hint=failure.hint, details=failure.details)


def _classes_by_code() -> dict[str, type[IIIError]]:
    found: dict[str, type[IIIError]] = {}
    waiting: list[type[IIIError]] = [IIIError]
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        if cls is not InvocationError:  # its code belongs to the instance, and it is built otherwise
            found.setdefault(cls.default_code, cls)
    return found


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def _encode_other(value: object) -> Any:
    if isinstance(value, PurePath):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} cannot cross to the sandbox host")
