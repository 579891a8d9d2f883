"""Published ports: addresses of this machine whose connections go on inside a sandbox."""

from __future__ import annotations

import errno
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from iii_core.errors import AddressInUse, ConfigError, LinkError, UnsupportedOperation
from iii_core.link.accept import Acceptor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from iii_core.project.sandbox_settings import PublishedPort
    from iii_core.sandbox.agent import Agent

CONNECT_TIMEOUT: Final = 10.0
MAX_CONNECTIONS: Final = 64
"""At once, of all ports of a worker: each takes a stream of the link that processes need too."""
_PIECE: Final = 65536


class Ports:
    """The open ports of one run of a worker. What connects before `serve` waits in the system's queue, and so does what
    is more than `MAX_CONNECTIONS`."""

    def __init__(self, listeners: Sequence[tuple[PublishedPort, trio.SocketListener]]) -> None:
        self._listeners = listeners
        self._slots = trio.Semaphore(MAX_CONNECTIONS)
        self._unreached: set[PublishedPort] = set()

    async def serve(self, agent: Agent, note: Callable[[str], None]) -> None:
        """Connect whoever comes, until cancelled or the link ends. ``note`` is told of a port that nobody
        can be connected to, until somebody was.
        """
        async with trio.open_nursery() as nursery:
            for port, listener in self._listeners:
                acceptor = Acceptor(listener, name=f"published port {port.host}", slots=self._slots)
                nursery.start_soon(acceptor.run, partial(self._connect, agent, port, note), nursery)
            await agent.wait_closed()
            nursery.cancel_scope.cancel()

    async def _connect(
        self, agent: Agent, port: PublishedPort, note: Callable[[str], None], client: trio.SocketStream
    ) -> None:
        try:
            with trio.fail_after(CONNECT_TIMEOUT):
                inside = await agent.dial(port.guest)
        except (ConnectionRefusedError, UnsupportedOperation, LinkError, trio.TooSlowError) as error:
            if port not in self._unreached:  # once, or whoever connects could fill the log
                note(f"port {port.host}: nobody was reached at port {port.guest} inside ({error})")
                self._unreached.add(port)
            return
        self._unreached.discard(port)
        async with inside:
            await join(client, inside)


@asynccontextmanager
async def open_ports(ports: Sequence[PublishedPort]) -> AsyncGenerator[Ports]:
    """Take the addresses; they are free again at the end.

    Raises:
        AddressInUse: one of them is taken.
        ConfigError: one cannot be had at all: no address of this machine, or a port that is the system's.
    """
    listeners: list[tuple[PublishedPort, trio.SocketListener]] = []
    try:
        for port in ports:
            listeners.append((port, await _listen(port)))
        yield Ports(listeners)
    finally:
        for _, listener in listeners:
            listener.socket.close()


async def _listen(port: PublishedPort) -> trio.SocketListener:
    try:
        (listener,) = await trio.open_tcp_listeners(port.host, host=port.address)
    except OSError as error:
        where = f"{port.address}:{port.host}"
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(
                f"cannot publish port {port.guest} at {where}: the address is taken",
                hint="choose another host port in the worker's 'ports'",
            ) from error
        raise ConfigError(
            f"cannot publish port {port.guest} at {where}: {error.strerror}",
            hint="the address must be one of this machine's, and ports below 1024 mostly need root",
        ) from error
    return listener


async def join(one: trio.abc.HalfCloseableStream, other: trio.abc.HalfCloseableStream) -> None:
    """Carry bytes both ways until both have ended, or one is broken. Closes neither."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_carry, one, other, nursery.cancel_scope)
        nursery.start_soon(_carry, other, one, nursery.cancel_scope)


async def _carry(
    source: trio.abc.HalfCloseableStream, target: trio.abc.HalfCloseableStream, broken: trio.CancelScope
) -> None:
    try:
        while data := await source.receive_some(_PIECE):
            await target.send_all(data)
        await target.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError, LinkError):
        broken.cancel()
