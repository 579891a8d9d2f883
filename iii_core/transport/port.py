"""The transport port: message connections, whatever carries them.

A transport moves whole messages and knows nothing of routing. The core decides who may connect (`Admit`) and what each
connection is for; the transport enforces limits of size and time and hands over a `Peer`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import trio

if TYPE_CHECKING:
    from ssl import SSLContext


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One whole message. ``text`` says which kind it was on the wire; text is valid UTF-8, still encoded."""

    data: bytes
    text: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionRequest:
    """What is known of a connection before it is admitted (RFC 6455 §4.1 for WebSocket).

    Attributes:
        path: path only, such as ``/`` or ``/ws/channels/<id>``.
        query: raw query string without ``?``.
        headers: lower-case names in order of arrival; a name may occur more than once.
        remote: the peer's IP address without port, or None for a connection without one.
        sandbox: the sandbox the connection came out of, for tunnelled ones.
    """

    path: str
    query: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    remote: str | None = None
    sandbox: str | None = None

    def header(self, name: str) -> str | None:
        """The last value of a header (``name`` in lower case), or None."""
        values = [value for key, value in self.headers if key == name]
        return values[-1] if values else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """An HTTP answer instead of a connection."""

    status: int
    body: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes in bytes, times in seconds."""

    max_message: int = 64 * 1024 * 1024
    handshake_timeout: float = 10.0
    close_timeout: float = 2.0


class Peer(ABC):
    """One open message connection.

    ``send`` may be called by one task at a time, ``receive`` by one other. Both are checkpoints and may be cancelled; a
    cancelled ``send`` leaves the connection unusable except for ``abort``.
    """

    request: ConnectionRequest

    @abstractmethod
    async def send(self, message: Message) -> None:
        """Send one message; returns when the transport has taken it all. Raises ``trio.BrokenResourceError``."""

    @abstractmethod
    async def receive(self) -> Message:
        """The next message. Raises ``trio.EndOfChannel`` after a clean close, ``trio.BrokenResourceError`` else."""

    async def send_many(self, messages: Sequence[Message]) -> None:
        """Send messages in order. Same contract as ``send``; a transport that can should coalesce the writes."""
        for message in messages:
            await self.send(message)

    async def receive_many(self) -> Sequence[Message]:
        """At least one message: the next, and those that are here already without waiting. Raises like ``receive``."""
        return (await self.receive(),)

    @property
    def progress(self) -> int | None:
        """A number that grows whenever bytes leave, within one message too; None if the transport cannot tell.

        With it the engine tells a slow peer from one that takes nothing; without it, it must guess from sizes.
        """
        return None

    @abstractmethod
    def abort(self) -> None:
        """Drop the connection at once, without a closing handshake (clients see 1006 and reconnect). Idempotent."""

    @abstractmethod
    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close with a closing handshake, bounded by ``Limits.close_timeout``. Idempotent.

        Code 1005 sends a close frame without a code (spec protocol §2.3).
        """


Admit: TypeAlias = Callable[[ConnectionRequest], Rejection | None]
Serve: TypeAlias = Callable[[Peer], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenAddress:
    """``port`` 0 lets the system choose. ``secure`` tells of a bound address whether clients must use TLS there."""

    host: str
    port: int
    secure: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """How to serve connections: ``admit`` decides on the request, ``serve`` runs each admitted peer in its own task.

    With ``tls`` every connection begins with a TLS handshake, within ``limits.handshake_timeout``.
    """

    admit: Admit
    serve: Serve
    limits: Limits = field(default_factory=Limits)
    tls: SSLContext | None = None


class MessageTransport(ABC):
    """An opened transport; its methods may be called concurrently."""

    @abstractmethod
    async def listen(
        self,
        address: ListenAddress,
        listener: Listener,
        *,
        task_status: trio.TaskStatus[ListenAddress] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept until cancelled; ``started`` gives the bound address.

        Raises `AddressInUse`, and `ConfigError` for a listener with TLS where the transport cannot do it.

        Cancelling aborts every connection (no close frame: old SDKs reconnect only then, spec protocol §11 #3).
        """

    @abstractmethod
    async def serve_stream(
        self,
        stream: trio.abc.Stream,
        listener: Listener,
        *,
        remote: str | None = None,
        sandbox: str | None = None,
    ) -> None:
        """Serve one connection over an existing byte stream, until it ends. Never raises for what the peer does."""

    @abstractmethod
    async def connect(
        self, url: str, *, headers: Mapping[str, str] | None = None, limits: Limits | None = None
    ) -> Peer:
        """Dial ``url``.

        Raises ``OSError`` or `iii_core.errors.EngineNotRunning` where nothing answers, `iii_core.errors.TlsError` for a
        certificate that is not to be trusted.
        """
