"""Streaming channels: a bounded FIFO of messages between two ends, each a socket or an in-process worker (spec §2).

A channel belongs to nobody: its creator may leave. Each end can be taken once. The writer may be done before the reader
comes. While the buffer is full the writer's socket is not read, so that its client waits; nobody else does.
"""

from __future__ import annotations

import hmac
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

import trio

from iii_core.engine.admission import CHANNEL_PREFIX
from iii_core.errors import EngineError, InvocationError
from iii_core.protocol import codes
from iii_core.transport.port import Message, Rejection

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iii_core.protocol.limits import EngineLimits
    from iii_core.transport.port import ConnectionRequest, Peer

DEFAULT_ITEMS: Final = 64
MAX_ITEMS: Final = 1024
SWEEP_INTERVAL: Final = 60.0
UNTAKEN_LIFETIME: Final = 300.0
"""Seconds after which a channel goes of which an end was never taken (spec §2.3)."""
NO_STATUS: Final = 1005
"""A close frame without a code, which is how a reader learns of the end (spec §2.3)."""


@dataclass(slots=True, eq=False)
class Channel:
    """The state of one channel; its ends are `ChannelWriter` and `ChannelReader`."""

    id: str
    key: str
    creator: str
    items: int
    limit: int
    created: float
    taken: set[str] = field(default_factory=set[str])
    finished: bool = False
    cancelled: bool = False
    queue: deque[Message] = field(default_factory=deque[Message])
    size: int = 0
    moved: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    @property
    def full(self) -> bool:
        """Whether another message must wait; one of any size fits an empty buffer."""
        return len(self.queue) >= self.items or (self.size >= self.limit and bool(self.queue))

    def cancel(self) -> None:
        """Throw away what is buffered, and end both ends."""
        self.cancelled = True
        self.queue.clear()
        self.size = 0
        self.moved.unpark_all()

    def ref(self, direction: str) -> dict[str, str]:
        """What a payload carries to whoever is to open an end. The key is a bearer secret."""
        return {"channel_id": self.id, "access_key": self.key, "direction": direction}


class ChannelWriter:
    """The end that messages go in. Leaving the ``with`` block finishes the stream."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def send(self, message: Message) -> None:
        """Wait for room and append. Raises ``trio.BrokenResourceError`` once the reader is gone."""
        await trio.lowlevel.checkpoint()
        channel = self._channel
        if channel.finished:
            raise trio.ClosedResourceError("this end is finished")
        while channel.full and not channel.cancelled:
            await channel.moved.park()
        if channel.cancelled:
            raise trio.BrokenResourceError("the reader is gone")
        channel.queue.append(message)
        channel.size += len(message.data)
        channel.moved.unpark_all()

    async def cancelled(self) -> None:
        """Wait until the reader is gone."""
        while not self._channel.cancelled:
            await self._channel.moved.park()
        await trio.lowlevel.checkpoint()

    def finish(self) -> None:
        """The reader gets what is buffered, then the end. Idempotent."""
        self._channel.finished = True
        self._channel.moved.unpark_all()

    def __enter__(self) -> ChannelWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.finish()


class ChannelReader:
    """The end that messages come out of. Leaving the ``with`` block ends the writer too."""

    def __init__(self, channel: Channel, table: ChannelTable) -> None:
        self._channel = channel
        self._table = table

    async def receive(self) -> Message:
        """The next message. Raises ``trio.EndOfChannel`` after the last, ``trio.BrokenResourceError`` once swept."""
        await trio.lowlevel.checkpoint()
        channel = self._channel
        while not channel.queue:
            if channel.cancelled:
                raise trio.BrokenResourceError("the channel is gone")
            if channel.finished:
                raise trio.EndOfChannel
            await channel.moved.park()
        message = channel.queue.popleft()
        channel.size -= len(message.data)
        channel.moved.unpark_all()
        return message

    def cancel(self) -> None:
        """Read no further: the writer's next message fails. Idempotent."""
        self._channel.cancel()
        self._table.forget(self._channel)

    def __enter__(self) -> ChannelReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.cancel()

    def __aiter__(self) -> ChannelReader:
        return self

    async def __anext__(self) -> Message:
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None


class ChannelTable:
    """The channels of an engine. ``run`` must run while the engine does."""

    def __init__(self, limits: EngineLimits) -> None:
        self._limits = limits
        self._channels: dict[str, Channel] = {}

    def __len__(self) -> int:
        return len(self._channels)

    def create(self, creator: str, buffer_size: object = None) -> Channel:
        """A new channel for at most ``buffer_size`` messages (clamped to 1 and 1024; what is no integer is 64).

        Raises:
            InvocationError: ``limit_exceeded``: the creator has too many that are not used up.
        """
        if sum(channel.creator == creator for channel in self._channels.values()) >= self._limits.channels:
            text = f"a worker may have {self._limits.channels} channels that are not used up"
            raise InvocationError(codes.LIMIT_EXCEEDED, text)
        items = buffer_size if type(buffer_size) is int else DEFAULT_ITEMS
        channel = Channel(
            id=str(uuid.uuid4()),
            key=str(uuid.uuid4()),
            creator=creator,
            items=min(max(items, 1), MAX_ITEMS),
            limit=self._limits.channel_bytes,
            created=trio.current_time(),
        )
        self._channels[channel.id] = channel
        return channel

    def find(self, channel_id: str, key: str) -> Channel | None:
        """The channel of that id and key, compared in constant time."""
        channel = self._channels.get(channel_id)
        expected = channel.key if channel is not None else ""
        matches = hmac.compare_digest(key.encode("utf-8", "replace"), expected.encode())
        return channel if matches and channel is not None else None

    def open(self, ref: Mapping[str, Any]) -> ChannelWriter | ChannelReader:
        """Take the end that a reference names. Raises `EngineError` if there is no such channel, or it is taken."""
        channel = self.find(str(ref.get("channel_id")), str(ref.get("access_key")))
        direction = str(ref.get("direction"))
        if channel is None or direction not in {"read", "write"}:
            raise EngineError("there is no such channel", hint="channels go when they are used up, or not used at all")
        if direction in channel.taken:
            raise EngineError(f"this end of the channel is taken ({direction})", hint="each end can be opened once")
        channel.taken.add(direction)
        return ChannelReader(channel, self) if direction == "read" else ChannelWriter(channel)

    def forget(self, channel: Channel) -> None:
        """Remove a channel that nobody can use any more."""
        self._channels.pop(channel.id, None)

    def admit(self, request: ConnectionRequest) -> Rejection | None:
        """The last word on a request for a channel whose form is right: 404 for an unknown id or a wrong key."""
        channel = self.find(*_named(request)[:2])
        return None if channel is not None else Rejection(status=404, body="Channel not found")

    async def serve(self, peer: Peer) -> None:
        """Serve one end's socket until it ends. An end that is taken is closed at once."""
        channel_id, key, direction = _named(peer.request)
        try:
            end = self.open({"channel_id": channel_id, "access_key": key, "direction": direction})
        except EngineError:
            await peer.close(NO_STATUS)
            return
        try:
            if isinstance(end, ChannelWriter):
                await _serve_writer(peer, end)
            else:
                await _serve_reader(peer, end)
        finally:
            peer.abort()

    async def run(self) -> None:
        """Remove channels of which an end was never taken. Runs until cancelled."""
        while True:
            await trio.sleep(SWEEP_INTERVAL)
            self.sweep(trio.current_time() - UNTAKEN_LIFETIME)

    def sweep(self, before: float) -> None:
        """Remove what was created before a trio time and is not taken at both ends."""
        for channel in list(self._channels.values()):
            if channel.created < before and len(channel.taken) < 2:
                channel.cancel()
                self.forget(channel)


async def _serve_writer(peer: Peer, end: ChannelWriter) -> None:
    with end:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await end.cancelled()
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            try:
                while True:
                    await end.send(await peer.receive())
            except (trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError):
                nursery.cancel_scope.cancel()


async def _serve_reader(peer: Peer, end: ChannelReader) -> None:
    with end:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                try:
                    while True:
                        await peer.receive()  # what a reader says does not matter; that it leaves does
                except (trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError):
                    nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            try:
                async for message in end:
                    await peer.send(message)
                await peer.close(NO_STATUS)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            nursery.cancel_scope.cancel()


def _named(request: ConnectionRequest) -> tuple[str, str, str]:
    query = parse_qs(request.query)
    return request.path.removeprefix(CHANNEL_PREFIX), query.get("key", [""])[0], query.get("dir", [""])[0]
