"""A worker as the router sees it: connected over a transport, in-process, or the engine itself."""

from __future__ import annotations

import logging
import time
import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from iii_core.engine.budget import Budget
from iii_core.engine.credit import Credit
from iii_core.engine.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iii_core.engine.invocations import Invocation
    from iii_core.protocol.limits import EngineLimits
    from iii_core.protocol.messages import InvokeFunction, ToWorker


log = logging.getLogger(__name__)

LOG_INTERVAL: Final = 1.0
"""Seconds between two log lines about one worker's faults."""


class WorkerStatus(StrEnum):
    """States of a worker that others can see (seed: worker lifecycle). A disconnected worker is gone from the lists."""

    CONNECTED = "connected"
    """In the registry; it has not described itself nor registered anything yet."""
    AVAILABLE = "available"
    """Idle."""
    BUSY = "busy"
    """Executing at least one invocation."""


@dataclass(slots=True)
class WorkerRecord:
    """What is known of a worker (spec protocol §5.2). ``sandbox`` is the sandbox its connection came out of."""

    id: str
    connected_at_ms: int
    name: str | None = None
    version: str | None = None
    runtime: str | None = None
    os: str | None = None
    pid: int | None = None
    isolation: str | None = None
    description: str | None = None
    telemetry: Mapping[str, Any] | None = None
    ip_address: str | None = None
    sandbox: str | None = None
    internal: bool = False
    latest_metrics: Mapping[str, Any] | None = None


def now_ms() -> int:
    """Wall-clock milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Endpoint(ABC):
    """One worker: its record, what it owns and what it is doing. Changed by the router alone, never across an await.

    Attributes:
        functions: ids by which the worker knows its functions → ids under which they are registered.
        trigger_types, triggers: ids that it owns.
        unserved: ids of functions that it wants called over HTTP, which nobody here does.
        calls: its calls without an answer yet.
        executing: calls that it has not answered yet, by the engine's invocation id. A caller that left is not in them.
        held_bytes: what is kept of its calls until they are answered.
        registered: its budget for registrations.
        trusted: part of the engine; may register ``engine::`` ids, and as many as it likes.
        charges_receiver: its calls wait on the credit of whoever they are for: none of its own would hold it back.
        ready: it described itself or registered something.
        reattach_token: a bearer secret that lets the worker end this connection from its next one; never listed.
        attached: False before it joined and after it left; a message to it is thrown away then.
    """

    trusted = False
    charges_receiver = False

    def __init__(
        self, record: WorkerRecord, limits: EngineLimits, policy: Policy | None = None, origin: Budget | None = None
    ) -> None:
        self.record = record
        self.limits = limits
        self.policy = policy or Policy()
        self.credit = Credit(limits)
        self.registered = Budget() if self.trusted else Budget(limits.worker_registrations_bytes, shared=origin)
        self.functions: dict[str, str] = {}
        self.trigger_types: set[str] = set()
        self.unserved: set[str] = set()
        self.triggers: set[str] = set()
        self.calls: set[Invocation] = set()
        self.executing: dict[str, Invocation] = {}
        self.held_bytes = 0
        self.ready = False
        self.attached = False
        self._said_at = float("-inf")
        self._unsaid = 0
        self.reattach_token = str(uuid.uuid4())

    def complain(self, text: str) -> None:
        """Log what the worker did wrong, one line per `LOG_INTERVAL` at most: a worker must not fill the log."""
        self._unsaid += 1
        now = time.monotonic()
        if now - self._said_at >= LOG_INTERVAL:
            log.warning("%r: %s%s", self, text, f" ({self._unsaid} such lines)" if self._unsaid > 1 else "")
            self._said_at, self._unsaid = now, 0

    @property
    def id(self) -> str:
        """The worker's id, which changes with each connection."""
        return self.record.id

    @property
    def status(self) -> WorkerStatus:
        """What the worker is doing now."""
        if self.executing:
            return WorkerStatus.BUSY
        return WorkerStatus.AVAILABLE if self.ready else WorkerStatus.CONNECTED

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.record.name or '(unnamed)'} {self.id}>"

    @abstractmethod
    def send(self, message: ToWorker, payer: Endpoint | None) -> None:
        """Queue a message that must arrive. Never waits; a worker whose queue is full is dropped.

        ``payer`` is the worker on whose credit the message is while it waits, or None for the engine's.
        """

    @abstractmethod
    def deliver(self, message: InvokeFunction, invocation: Invocation) -> str | None:
        """Queue a call, or say why it cannot be delivered. Never waits. On the caller's credit."""

    @abstractmethod
    def drop(self, reason: str) -> None:
        """Cut the worker's connection without ceremony. Idempotent; the router has let go of it or soon will."""
