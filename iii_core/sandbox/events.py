"""The event channel of a sandbox driver: bounded, and never in the driver's way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from iii_core.sandbox.port import SandboxEvent

EVENTS_KEPT = 64


class EventQueue:
    """What a driver publishes its `SandboxEvent`s into: when nobody reads, the oldest events are dropped."""

    def __init__(self, kept: int = EVENTS_KEPT) -> None:
        self._send, self.receiver = trio.open_memory_channel["SandboxEvent"](kept)

    def publish(self, event: SandboxEvent) -> None:
        """Hand an event over without waiting; does nothing once the reader has closed its end."""
        while True:
            try:
                self._send.send_nowait(event)
                return
            except trio.BrokenResourceError:
                return
            except trio.WouldBlock:
                self._drop_oldest()

    def close(self) -> None:
        """End the channel: a reader gets what is left, then ``trio.EndOfChannel``. Idempotent."""
        self._send.close()

    def _drop_oldest(self) -> None:
        try:
            self.receiver.receive_nowait()
        except (trio.WouldBlock, trio.ClosedResourceError):
            return
