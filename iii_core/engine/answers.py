"""What discovery answers, encoded: bounded in size, and once for all who ask the same while nothing changes."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
from msgspec import Raw

from iii_core.engine.describe import wants_new_shapes
from iii_core.engine.discovery import QUERIES, Arguments, arguments
from iii_core.engine.policy import Policy
from iii_core.errors import InvocationError
from iii_core.protocol import codes
from iii_core.protocol.codec import CALLER_KEY

if TYPE_CHECKING:
    from iii_core.engine.endpoint import Endpoint
    from iii_core.engine.router import Router

ENTRIES: Final = 32
KEY_BYTES: Final = 1024
LIVE: Final = frozenset({"engine::workers::list", "engine::workers::info"})
"""Answers that show what workers are doing at this moment."""

_encoder = msgspec.json.Encoder()


class Answers:
    """The answers of the discovery functions. All kept ones together are no larger than two of the longest."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._limits = router.limits
        self._state: Hashable = None
        self._kept: dict[Hashable, Raw] = {}
        self._bytes = 0

    def get(self, function_id: str, caller: Endpoint, data: Raw, generation: int) -> Raw:
        """The answer of a function to a caller; ``generation`` counts what changed about workers.

        Raises:
            InvocationError: bad arguments, or the answer would be longer than ``EngineLimits.answer_bytes``.
        """
        given = arguments(data, self._limits.registration_bytes)
        given.pop(CALLER_KEY, None)
        key = self._key(function_id, caller, given) if function_id not in LIVE else None
        state = (self._router.functions.version, self._router.triggers.version, generation)
        if state != self._state or len(self._kept) > ENTRIES or self._bytes > self._limits.answer_bytes:
            self._kept.clear()
            self._bytes, self._state = 0, state
        answer = self._kept.get(key) if key is not None else None
        if answer is None:
            answer = encode_bounded(QUERIES[function_id][0](self._router, caller, given), self._limits.answer_bytes)
            if key is not None:
                self._kept[key] = answer
                self._bytes += memoryview(answer).nbytes
        return answer

    def _key(self, function_id: str, caller: Endpoint, given: Arguments) -> Hashable:
        """What an answer depends on besides the tables; None for one that is not to be kept."""
        text = msgspec.json.encode(given, order="sorted")
        if len(text) > KEY_BYTES:
            return None
        policy = None if type(caller.policy) is Policy else caller.policy  # whoever has no rules is told the same
        return function_id, policy, wants_new_shapes(caller.record), text


def encode_bounded(value: object, limit: int) -> Raw:
    """The JSON of a value of dicts and lists, which is not built to its end when it is longer than ``limit`` bytes.

    Raises:
        InvocationError: ``limit_exceeded``.
    """
    out = bytearray()
    _encode(value, out, limit)
    return Raw(bytes(out))


def _encode(value: object, out: bytearray, limit: int) -> None:
    items: list[Any] = []
    if isinstance(value, dict):
        items = list(cast("dict[str, Any]", value).values())
    elif isinstance(value, list):
        items = cast("Any", value)
    if not any(isinstance(item, dict | list) for item in items):
        _encoder.encode_into(value, out, -1)
    elif isinstance(value, dict):
        for index, (key, item) in enumerate(cast("dict[str, Any]", value).items()):
            out += b"%b%b:" % (b"," if index else b"{", _encoder.encode(key))
            _encode(item, out, limit)
        out += b"}"
    else:
        for index, item in enumerate(items):
            out += b"," if index else b"["
            _encode(item, out, limit)
        out += b"]"
    if len(out) > limit:
        text = f"the answer has more than {limit} bytes; ask for less of it ('prefix', 'search', 'worker')"
        raise InvocationError(codes.LIMIT_EXCEEDED, text)
