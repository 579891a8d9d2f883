"""What the registrations of workers may cost in memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from msgspec import Raw

if TYPE_CHECKING:
    from iii_core.protocol.messages import WireMessage

REGISTRATION_OVERHEAD: Final = 1024
"""What the tables need for one registration besides its texts, in bytes, about."""


class Budget:
    """Bytes of registrations that somebody may hold, within what they share with others.

    Args:
        limit: bytes.
        whose: who is named when it is used up.
        shared: a further budget, from which the same bytes are taken.
    """

    __slots__ = ("__weakref__", "_limit", "_shared", "_whose", "used")

    def __init__(self, limit: float = math.inf, whose: str = "one worker", shared: Budget | None = None) -> None:
        self._limit = limit
        self._whose = whose
        self._shared = shared
        self.used = 0

    def refuse(self, size: int) -> str | None:
        """Why ``size`` more bytes (less, if negative) cannot be had, or None."""
        if self.used + size > self._limit:
            return f"the registrations of {self._whose} may have {self._limit} bytes together"
        return self._shared.refuse(size) if self._shared is not None else None

    def take(self, size: int) -> None:
        """Something was registered, or with a negative size, unregistered."""
        self.used += size
        if self._shared is not None:
            self._shared.take(size)


def size_of(message: WireMessage) -> int:
    """Bytes of a registration's texts and bodies."""
    fields = [getattr(message, name) for name in message.__struct_fields__]
    bodies = sum(memoryview(body).nbytes for body in fields if isinstance(body, Raw))
    return bodies + sum(len(text.encode()) for text in fields if isinstance(text, str))
