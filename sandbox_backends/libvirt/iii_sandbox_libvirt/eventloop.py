"""libvirt's event loop, in a thread of its own: one per process, started before the first connection is opened."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iii_sandbox_libvirt.api import Library


class EventLoop:
    """Runs libvirt's default event implementation until `stop`. It is process-global, as libvirt has it."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="libvirt-events", daemon=True)

    def start(self) -> None:
        """Register the implementation and run it. libvirt wants this before any connection."""
        self._library.virEventRegisterDefaultImpl()
        self._timer = self._library.virEventAddTimeout(-1, _nothing, None)
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end, without waiting for it."""
        self._stopping = True
        self._library.virEventUpdateTimeout(self._timer, 0)

    def _run(self) -> None:
        while not self._stopping:
            self._library.virEventRunDefaultImpl()
        self._library.virEventRemoveTimeout(self._timer)


def _nothing(*_: object) -> None:
    """What a timer does that only wakes the loop."""
