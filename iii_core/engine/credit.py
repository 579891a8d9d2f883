"""What a worker's messages may cost while they wait in queues.

The rule (design, flow control): a reader never waits for another peer, it waits for its own worker's credit. Every
message that waits in any queue is on the account of the worker that caused it: a call and a registration on the
sender's, a result on that of the worker which asked for it. A worker over its credit is not read from until enough of
its messages have left the queues, and every queue either moves or is dropped with its connection (``stall_timeout``),
so that it gets there. Nothing waits for an *answer*, because a paused worker's replies may be what others wait for:
calls in flight have a hard cap instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from iii_core.protocol.limits import EngineLimits


class Credit:
    """The account of one worker. ``take`` and ``give`` never wait; only the worker's own reader does."""

    __slots__ = ("_bytes", "_limits", "_messages", "_waiter")

    def __init__(self, limits: EngineLimits) -> None:
        self._limits = limits
        self._messages = 0
        self._bytes = 0
        self._waiter: trio.Event | None = None

    @property
    def exhausted(self) -> bool:
        """Whether more waits in queues than the worker may have there."""
        return self._messages > self._limits.credit_messages or self._bytes > self._limits.credit_bytes

    @property
    def owed(self) -> tuple[int, int]:
        """Messages and bytes that wait in queues now."""
        return self._messages, self._bytes

    def take(self, size: int) -> None:
        """A message of ``size`` bytes went into a queue."""
        self._messages += 1
        self._bytes += size

    def give(self, size: int) -> None:
        """A message left its queue, whether it was delivered or thrown away."""
        self._messages -= 1
        self._bytes -= size
        limits = self._limits
        low = self._messages <= limits.credit_messages // 2 and self._bytes <= limits.credit_bytes // 2
        if low and self._waiter is not None:
            self._waiter.set()
            self._waiter = None

    async def restored(self) -> None:
        """Return at once unless the credit is exhausted; then wait until no more than half of it is used.

        So a reader that had to wait has something to do when it wakes, instead of stopping again after one message.
        """
        while self.exhausted:
            self._waiter = self._waiter or trio.Event()
            await self._waiter.wait()
