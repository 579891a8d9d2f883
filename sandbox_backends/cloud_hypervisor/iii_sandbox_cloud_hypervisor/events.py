"""The VMM's events: JSON objects, each followed by an empty line (``docs/api.md`` of Cloud Hypervisor). Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_EVENT: Final = 64 * 1024
_END: Final = b"\n\n"


class VmmEvent(msgspec.Struct, frozen=True):
    """Something happened in a VMM; ``source`` is such as ``vm`` or ``vmm``, ``event`` such as ``booted``."""

    source: str
    event: str

    @property
    def is_reboot(self) -> bool:
        """Whether the guest begins anew."""
        return self.source == "vm" and self.event.startswith("reboot")


class EventParser:
    """Cuts the stream into events. What is no event is skipped, also one that does not end for `MAX_EVENT` bytes."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[VmmEvent]:
        """The events that are whole now."""
        *whole, rest = (self._rest + data).split(_END)
        self._rest = rest if len(rest) <= MAX_EVENT else b""
        for document in whole:
            yield from _read(document)


def _read(document: bytes) -> Iterator[VmmEvent]:
    try:
        yield msgspec.json.decode(document, type=VmmEvent)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return
