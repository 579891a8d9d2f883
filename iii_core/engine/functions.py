"""Which worker owns which function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from msgspec import Raw

from iii_core.engine.budget import REGISTRATION_OVERHEAD, size_of
from iii_core.protocol.messages import ABSENT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from iii_core.engine.endpoint import Endpoint
    from iii_core.protocol.messages import RegisterFunction


@dataclass(slots=True, eq=False)
class Function:
    """A registered function.

    Attributes:
        wire_id: the id by which its owner knows it, when a prefix was put before it.
        internal: whether its metadata say so.
        size: what it takes of its owner's budget.
    """

    id: str
    wire_id: str
    owner: Endpoint
    description: str | None
    request_format: Raw
    response_format: Raw
    metadata: Raw
    internal: bool
    size: int


class _Marked(msgspec.Struct):
    internal: Raw = ABSENT


class FunctionTable:
    """Functions by id. The last writer wins, and an owner can only take back what it still owns (spec protocol §1.5).

    ``on_change`` is called when an id appears or vanishes.

    Attributes:
        version: counts changes of any kind.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._functions: dict[str, Function] = {}
        self._on_change = on_change
        self.version = 0

    def __iter__(self) -> Iterator[Function]:
        return iter(self._functions.values())

    def get(self, function_id: str) -> Function | None:
        """The function of that id, or None."""
        return self._functions.get(function_id)

    def add(self, owner: Endpoint, message: RegisterFunction, wire_id: str) -> None:
        """Register, replacing what was registered under the id before."""
        if owner.functions.get(wire_id, message.id) != message.id:
            self.remove(owner, wire_id)
        previous = self._functions.get(message.id)
        if previous is not None:
            if previous.owner is not owner:
                owner.complain(f"takes the function {message.id!r} over from {previous.owner!r}")
            previous.owner.functions.pop(previous.wire_id, None)
            previous.owner.registered.take(-previous.size)
        size = size_of(message) + REGISTRATION_OVERHEAD
        owner.registered.take(size)
        self.version += 1
        owner.functions[wire_id] = message.id
        self._functions[message.id] = Function(
            id=message.id,
            wire_id=wire_id,
            owner=owner,
            description=message.description,
            request_format=message.request_format.copy(),
            response_format=message.response_format.copy(),
            metadata=message.metadata.copy(),
            internal=_is_marked(message.metadata),
            size=size,
        )
        if previous is None:
            self._on_change()

    def remove(self, owner: Endpoint, wire_id: str) -> bool:
        """Unregister what ``owner`` owns under its own name for it; False if it owns no such thing."""
        function_id = owner.functions.pop(wire_id, None)
        if function_id is None:
            return False
        owner.registered.take(-self._functions.pop(function_id).size)
        self.version += 1
        self._on_change()
        return True

    def release(self, owner: Endpoint) -> None:
        """Unregister all that ``owner`` owns."""
        for wire_id in list(owner.functions):
            self.remove(owner, wire_id)


def _is_marked(metadata: Raw) -> bool:
    if b"internal" not in bytes(metadata):
        return False
    try:
        return bytes(msgspec.json.decode(metadata, type=_Marked).internal) == b"true"
    except msgspec.ValidationError:
        return False
