"""Caps that keep one worker from exhausting the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MIB = 1024 * 1024
TRACEPARENT_LENGTH: Final = 55
"""W3C Trace Context §3.2.2: version 00 has exactly this many characters; what is longer is not passed on."""
BAGGAGE_LENGTH: Final = 8192
"""W3C Baggage §3.3.2: what must be passed on; what is longer is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """What one connection may cost. Sizes are bytes, times are seconds.

    Attributes:
        credit_messages: messages a worker may have waiting in queues (its calls on their way to callees, results on
            their way to it) before the engine pauses reading from it.
        credit_bytes: the same in bytes. One message may always overshoot.
        queue_messages: messages that may wait for one worker. A call that finds the queue full fails at once.
        queue_bytes: the same in bytes; one message of any size fits an empty queue.
        calls_in_flight: calls of one worker without an answer yet; a further one fails with ``limit_exceeded``.
        calls_executing: calls that one worker has not answered; a further one fails for its caller.
        held_bytes: what is kept of one worker's calls until they are answered: their ids and trace context, and the
            payloads that in-process handlers are working on. One call may overshoot.
        channels: streaming channels that one worker may have created and not used up.
        channel_bytes: what a channel buffers besides its number of messages; one message may overshoot.
        stall_timeout: a worker whose connection takes nothing for this long is dropped.
        stall_rate: where a transport cannot tell how far a write got, one of n bytes gets ``n / stall_rate`` on top.
        functions: functions one worker may register.
        triggers: triggers one worker may register.
        trigger_types: trigger types one worker may register.
        id_length: UTF-8 bytes of a function, trigger, trigger type or invocation id.
        registration_bytes: size of the ids, description, formats, config and metadata of one registration together,
            and of the arguments of one call of the engine's own functions.
        worker_registrations_bytes: the same for all registrations of one worker, 1 KiB for each on top.
        origin_registrations_bytes: the same for all workers of one sandbox together, and for all outside of any.
        answer_bytes: what discovery may answer to one call, or tell of in one event: more than one worker can fill.
        subscriptions: triggers that one worker may have on one of the engine's own types.
    """

    credit_messages: int = 1024
    credit_bytes: int = 16 * MIB
    queue_messages: int = 65_536
    queue_bytes: int = 128 * MIB
    calls_in_flight: int = 65_536
    calls_executing: int = 65_536
    held_bytes: int = 256 * MIB
    channels: int = 1024
    channel_bytes: int = 1 * MIB
    stall_timeout: float = 30.0
    stall_rate: int = 64 * 1024
    functions: int = 10_000
    triggers: int = 10_000
    trigger_types: int = 1_000
    id_length: int = 1024
    registration_bytes: int = 1 * MIB
    worker_registrations_bytes: int = 16 * MIB
    origin_registrations_bytes: int = 256 * MIB
    answer_bytes: int = 32 * MIB
    subscriptions: int = 256
