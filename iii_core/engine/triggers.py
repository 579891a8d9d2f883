"""Trigger types, the workers that provide them, and the triggers bound to them (spec protocol §1.6).

A trigger is *active* while its type has a provider that did not refuse it, else *pending*: it waits for (another)
provider. Bindings towards a provider are kept unique per id: before a provider gets an id again it is told to let go of
it, so that a provider that simply adds what it is told never fires twice.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from iii_core.protocol.codec import trigger_config
from iii_core.protocol.messages import (
    RegisterTrigger,
    TriggerRegistrationResult,
    UnregisterTrigger,
    present,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from msgspec import Raw

    from iii_core.engine.endpoint import Endpoint
    from iii_core.protocol.messages import ErrorBody, RegisterTriggerType

    Outcome: TypeAlias = Callable[[ErrorBody | None], None]

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class TriggerType:
    """A type of triggers and the worker that provides it."""

    id: str
    provider: Endpoint
    description: str | None
    trigger_request_format: Raw
    call_request_format: Raw


@dataclass(slots=True, eq=False)
class Trigger:
    """A function bound to events.

    Attributes:
        owner: who registered it, and with whom it goes; None for one that was registered by a call and stays.
        provider: who was told of it and did not refuse; None while pending.
        waiting: told once what the provider answers.
    """

    id: str
    type: str
    function_id: str
    config: Raw
    metadata: Raw
    owner: Endpoint | None
    provider: Endpoint | None = None
    waiting: list[Outcome] = field(default_factory=list["Outcome"])

    @property
    def active(self) -> bool:
        """Whether a provider has it."""
        return self.provider is not None

    def same_binding(self, other: Trigger) -> bool:
        """Whether both would be told to a provider in the same words."""
        return (self.type, self.function_id, bytes(self.config), bytes(self.metadata)) == (
            other.type,
            other.function_id,
            bytes(other.config),
            bytes(other.metadata),
        )


class TriggerTable:
    """Trigger types by id, and triggers by id and by type."""

    def __init__(self) -> None:
        self._types: dict[str, TriggerType] = {}
        self._triggers: dict[str, Trigger] = {}
        self._by_type: dict[str, dict[str, Trigger]] = {}

    def __iter__(self) -> Iterator[Trigger]:
        return iter(self._triggers.values())

    @property
    def types(self) -> list[TriggerType]:
        """All types that have a provider."""
        return list(self._types.values())

    def get(self, trigger_id: str) -> Trigger | None:
        """The trigger of that id, or None."""
        return self._triggers.get(trigger_id)

    def type(self, type_id: str) -> TriggerType | None:
        """The type of that id, or None while nobody provides it."""
        return self._types.get(type_id)

    def of_type(self, type_id: str) -> list[Trigger]:
        """The triggers of a type, pending ones included."""
        return list(self._by_type.get(type_id, {}).values())

    def add_type(self, provider: Endpoint, message: RegisterTriggerType) -> None:
        """Make ``provider`` the provider of a type, and hand it the type's triggers."""
        previous = self._types.get(message.id)
        if previous is not None and previous.provider is not provider:
            provider.complain(f"takes the trigger type {message.id!r} over from {previous.provider!r}")
            previous.provider.trigger_types.discard(message.id)
        self._types[message.id] = TriggerType(
            id=message.id,
            provider=provider,
            description=message.description,
            trigger_request_format=message.trigger_request_format.copy(),
            call_request_format=message.call_request_format.copy(),
        )
        provider.trigger_types.add(message.id)
        for trigger in self.of_type(message.id):
            self._bind(trigger)

    def remove_type(self, provider: Endpoint, type_id: str) -> bool:
        """Take a type back; its triggers wait for another provider. False unless ``provider`` provides it."""
        if type_id not in provider.trigger_types:
            return False
        provider.trigger_types.discard(type_id)
        del self._types[type_id]
        for trigger in self.of_type(type_id):
            trigger.provider = None
        return True

    def add(self, owner: Endpoint | None, message: RegisterTrigger, outcome: Outcome | None = None) -> None:
        """Register a trigger, replacing one of the same id, and bind it if its type has a provider.

        ``outcome`` is called with the provider's answer; not at all if there is none.
        """
        trigger = Trigger(
            id=message.id,
            type=message.trigger_type,
            function_id=message.function_id,
            config=trigger_config(message.config),
            metadata=present(message.metadata).copy(),
            owner=owner,
            waiting=[outcome] if outcome else [],
        )
        previous = self._triggers.get(trigger.id)
        if previous is not None:
            self._disown(previous)
            if previous.active and previous.same_binding(trigger):
                trigger.provider = previous.provider
            else:
                self._release(previous)
                del self._by_type[previous.type][previous.id]
        self._triggers[trigger.id] = trigger
        self._by_type.setdefault(trigger.type, {})[trigger.id] = trigger
        if owner is not None:
            owner.triggers.add(trigger.id)
        if trigger.provider is None:
            self._bind(trigger)

    def remove(self, trigger_id: str) -> bool:
        """Unregister a trigger, whoever owns it, and tell its provider. False if there is none."""
        trigger = self._triggers.pop(trigger_id, None)
        if trigger is None:
            return False
        siblings = self._by_type[trigger.type]
        del siblings[trigger_id]
        if not siblings:
            del self._by_type[trigger.type]
        self._disown(trigger)
        self._release(trigger)
        return True

    def result(self, provider: Endpoint, message: TriggerRegistrationResult) -> None:
        """Take a provider's answer: on an error the trigger waits, and its owner is told. Others' words are ignored."""
        trigger = self._triggers.get(message.id)
        if trigger is None or trigger.provider is not provider:
            log.debug("ignored a result of %r for the trigger %r", provider, message.id)
            return
        if message.error is not None:
            trigger.provider = None
            provider.complain(f"refused the trigger {trigger.id!r} ({trigger.type!r}): {message.error.message[:200]!r}")
            if trigger.owner is not None:
                trigger.owner.send(refusal(trigger, message.error), trigger.owner)
        outcomes, trigger.waiting = trigger.waiting, []
        for outcome in outcomes:
            outcome(message.error)

    def release(self, worker: Endpoint) -> None:
        """Let go of a worker that left: its triggers vanish, its types go, others' triggers of those types wait."""
        for type_id in list(worker.trigger_types):
            self.remove_type(worker, type_id)
        for trigger_id in list(worker.triggers):
            self.remove(trigger_id)

    def _bind(self, trigger: Trigger) -> None:
        self._release(trigger)
        trigger_type = self._types.get(trigger.type)
        if trigger_type is None:
            return
        trigger.provider = trigger_type.provider
        message = RegisterTrigger(
            id=trigger.id,
            trigger_type=trigger.type,
            function_id=trigger.function_id,
            config=trigger.config,
            metadata=trigger.metadata,
        )
        trigger.provider.send(message, trigger.owner)

    def _release(self, trigger: Trigger) -> None:
        if trigger.provider is not None:
            provider, trigger.provider = trigger.provider, None
            provider.send(UnregisterTrigger(id=trigger.id, trigger_type=trigger.type), trigger.owner)

    def _disown(self, trigger: Trigger) -> None:
        if trigger.owner is not None:
            trigger.owner.triggers.discard(trigger.id)


def refusal(trigger: Trigger | RegisterTrigger, error: ErrorBody) -> TriggerRegistrationResult:
    """What a registrant is told of a refused trigger."""
    trigger_type = trigger.type if isinstance(trigger, Trigger) else trigger.trigger_type
    return TriggerRegistrationResult(
        id=trigger.id, trigger_type=trigger_type, function_id=trigger.function_id, error=error
    )
