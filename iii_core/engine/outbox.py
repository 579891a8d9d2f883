"""The queue of messages to one connected worker."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

if TYPE_CHECKING:
    from iii_core.engine.credit import Credit
    from iii_core.protocol.limits import EngineLimits

BATCH_BYTES: Final = 256 * 1024
"""What is handed to the transport at once: enough to coalesce small messages, little enough to keep moving."""


class Entry(NamedTuple):
    """A frame and the account it is on."""

    frame: bytes
    payer: Credit | None


class Outbox:
    """A bounded FIFO: putting never waits, one task takes. Messages are on their payers' credit until settled."""

    def __init__(self, limits: EngineLimits) -> None:
        self._limits = limits
        self._entries: deque[Entry] = deque()
        self._bytes = 0
        self._filled = trio.Event()
        self._closed = False

    def has_room(self, size: int) -> bool:
        """Whether a frame of ``size`` bytes may be put; one of any size fits an empty queue."""
        if not self._entries:
            return True
        return len(self._entries) < self._limits.queue_messages and self._bytes + size <= self._limits.queue_bytes

    def put(self, frame: bytes, payer: Credit | None) -> None:
        """Append a frame; after `close` it is thrown away."""
        if self._closed:
            return
        self._entries.append(Entry(frame, payer))
        self._bytes += len(frame)
        if payer is not None:
            payer.take(len(frame))
        self._filled.set()

    async def take(self) -> list[Entry]:
        """Wait for frames and take a batch of them. They stay on credit until `settle`."""
        while not self._entries:
            self._filled = trio.Event()
            await self._filled.wait()
        batch: list[Entry] = []
        size = 0
        while self._entries and (not batch or size + len(self._entries[0].frame) <= BATCH_BYTES):
            entry = self._entries.popleft()
            batch.append(entry)
            size += len(entry.frame)
        self._bytes -= size
        return batch

    def settle(self, batch: list[Entry]) -> None:
        """Take the frames of a batch off their payers' credit."""
        for frame, payer in batch:
            if payer is not None:
                payer.give(len(frame))

    def close(self) -> None:
        """Throw away what waits, and whatever is put later."""
        self._closed = True
        self.settle(list(self._entries))
        self._entries.clear()
        self._bytes = 0
