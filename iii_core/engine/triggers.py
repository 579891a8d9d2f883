"""Trigger types, the workers that provide them, and the triggers bound to them (spec protocol §1.6).

A trigger is *active* while its type has a provider that did not refuse it, else *pending*: it waits for (another)
provider. Bindings towards a provider are kept unique per id: before a provider gets an id again it is told to let go of
it, so that a provider that simply adds what it is told never fires twice.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from iii_core.engine.budget import REGISTRATION_OVERHEAD, Budget, size_of
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

SUMMARY_LENGTH: Final = 80


@dataclass(slots=True, eq=False)
class TriggerType:
    """A type of triggers and the worker that provides it; ``size`` is what it takes of the provider's budget."""

    id: str
    provider: Endpoint
    description: str | None
    trigger_request_format: Raw
    call_request_format: Raw
    size: int

    def says(self, message: RegisterTriggerType) -> bool:
        """Whether ``message`` describes the type in the same words."""
        return (self.description, bytes(self.trigger_request_format), bytes(self.call_request_format)) == (
            message.description,
            bytes(message.trigger_request_format),
            bytes(message.call_request_format),
        )


@dataclass(slots=True, eq=False)
class Trigger:
    """A function bound to events.

    Attributes:
        owner: who registered it, and with whom it goes; None for one that was registered by a call and stays.
        budget: where its ``size`` was taken from.
        summary: the config as compact JSON, cut at `SUMMARY_LENGTH` characters.
        provider: who was told of it and did not refuse; None while pending.
        waiting: told once what the provider answers.
    """

    id: str
    type: str
    function_id: str
    config: Raw
    metadata: Raw
    owner: Endpoint | None
    budget: Budget
    size: int
    summary: str
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
    """Trigger types by id, and triggers by id and by type.

    What a provider is told is on the credit of whoever caused it: who registers or takes back a trigger, or a type.

    Attributes:
        ownerless: the budget of triggers without an owner.
        version: counts changes of any kind.
    """

    def __init__(self, ownerless: Budget | None = None) -> None:
        self.ownerless = ownerless or Budget()
        self.version = 0
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
        """Make ``provider`` the provider of a type, and hand it the type's triggers.

        Of a type that it provides already, and describes as before, it gets those alone that it does not have.
        """
        previous = self._types.get(message.id)
        known = previous is not None and previous.provider is provider and previous.says(message)
        if previous is not None:
            previous.provider.registered.take(-previous.size)
            if previous.provider is not provider:
                provider.complain(f"takes the trigger type {message.id!r} over from {previous.provider!r}")
                previous.provider.trigger_types.discard(message.id)
        self._types[message.id] = TriggerType(
            id=message.id,
            provider=provider,
            description=message.description,
            trigger_request_format=message.trigger_request_format.copy(),
            call_request_format=message.call_request_format.copy(),
            size=size_of(message) + REGISTRATION_OVERHEAD,
        )
        provider.registered.take(self._types[message.id].size)
        provider.trigger_types.add(message.id)
        self.version += 1
        for trigger in self.of_type(message.id):
            if not (known and trigger.active):
                self._bind(trigger, provider)

    def remove_type(self, provider: Endpoint, type_id: str) -> bool:
        """Take a type back; its triggers wait for another provider. False unless ``provider`` provides it."""
        if type_id not in provider.trigger_types:
            return False
        provider.trigger_types.discard(type_id)
        provider.registered.take(-self._types.pop(type_id).size)
        self.version += 1
        for trigger in self.of_type(type_id):
            trigger.provider = None
        return True

    def add(
        self,
        owner: Endpoint | None,
        message: RegisterTrigger,
        outcome: Outcome | None = None,
        *,
        payer: Endpoint | None = None,
    ) -> None:
        """Register a trigger, replacing one of the same id, and bind it if its type has a provider.

        ``outcome`` is called with the provider's answer; not at all if there is none. ``payer`` is who caused it, by
        default the owner.
        """
        payer = payer or owner
        config = trigger_config(message.config)
        trigger = Trigger(
            id=message.id,
            type=message.trigger_type,
            function_id=message.function_id,
            config=config,
            metadata=present(message.metadata).copy(),
            owner=owner,
            budget=owner.registered if owner is not None else self.ownerless,
            size=size_of(message) + REGISTRATION_OVERHEAD,
            summary=_summary(config),
            waiting=[outcome] if outcome else [],
        )
        previous = self._triggers.get(trigger.id)
        if previous is not None:
            self._disown(previous)
            if previous.active and previous.same_binding(trigger):
                trigger.provider = previous.provider
            else:
                self._release(previous, payer)
                del self._by_type[previous.type][previous.id]
        trigger.budget.take(trigger.size)
        self.version += 1
        self._triggers[trigger.id] = trigger
        self._by_type.setdefault(trigger.type, {})[trigger.id] = trigger
        if owner is not None:
            owner.triggers.add(trigger.id)
        if trigger.provider is None:
            self._bind(trigger, payer)

    def remove(self, trigger_id: str, payer: Endpoint | None) -> bool:
        """Unregister a trigger, whoever owns it, and tell its provider. False if there is none."""
        trigger = self._triggers.pop(trigger_id, None)
        if trigger is None:
            return False
        siblings = self._by_type[trigger.type]
        del siblings[trigger_id]
        if not siblings:
            del self._by_type[trigger.type]
        self._disown(trigger)
        self._release(trigger, payer)
        self.version += 1
        return True

    def result(self, provider: Endpoint, message: TriggerRegistrationResult) -> None:
        """Take a provider's answer: on an error the trigger waits, and its owner is told. Others' words are ignored."""
        trigger = self._triggers.get(message.id)
        if trigger is None or trigger.provider is not provider:
            log.debug("ignored a result of %r for the trigger %r", provider, message.id)
            return
        if message.error is not None:
            trigger.provider = None
            self.version += 1
            provider.complain(f"refused the trigger {trigger.id!r} ({trigger.type!r}): {message.error.message[:200]!r}")
            if trigger.owner is not None:
                trigger.owner.send(refusal(trigger, message.error), provider)
        outcomes, trigger.waiting = trigger.waiting, []
        for outcome in outcomes:
            outcome(message.error)

    def release(self, worker: Endpoint) -> None:
        """Let go of a worker that left: its triggers vanish, its types go, others' triggers of those types wait."""
        for type_id in list(worker.trigger_types):
            self.remove_type(worker, type_id)
        for trigger_id in list(worker.triggers):
            self.remove(trigger_id, worker)

    def _bind(self, trigger: Trigger, payer: Endpoint | None) -> None:
        self._release(trigger, payer)
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
        trigger.provider.send(message, payer)

    def _release(self, trigger: Trigger, payer: Endpoint | None) -> None:
        if trigger.provider is not None:
            provider, trigger.provider = trigger.provider, None
            provider.send(UnregisterTrigger(id=trigger.id, trigger_type=trigger.type), payer)

    def _disown(self, trigger: Trigger) -> None:
        trigger.budget.take(-trigger.size)
        if trigger.owner is not None:
            trigger.owner.triggers.discard(trigger.id)


def _summary(config: Raw) -> str:
    text = msgspec.json.format(bytes(config), indent=-1).decode()
    return text if len(text) <= SUMMARY_LENGTH else text[:SUMMARY_LENGTH] + "…"


def refusal(trigger: Trigger | RegisterTrigger, error: ErrorBody) -> TriggerRegistrationResult:
    """What a registrant is told of a refused trigger."""
    trigger_type = trigger.type if isinstance(trigger, Trigger) else trigger.trigger_type
    return TriggerRegistrationResult(
        id=trigger.id, trigger_type=trigger_type, function_id=trigger.function_id, error=error
    )
