"""libvirt's event loop, in a thread of its own."""

from __future__ import annotations

import functools
import threading

from iii_sandbox_libvirt.api import Library, load


@functools.cache
def run_event_loop() -> None:
    """Run libvirt's default event implementation for as long as the process lives; only the first call does anything.

    libvirt has one per process, and wants it before any connection. Several threads that run it wake each other badly,
    so it serves all connections, and there is no stopping it.
    """
    library = load()
    library.virEventRegisterDefaultImpl()
    threading.Thread(target=_run, args=(library,), name="libvirt-events", daemon=True).start()


def _run(library: Library) -> None:
    while True:
        library.virEventRunDefaultImpl()
