"""The messages on the wire (spec protocol §1.4), one struct per ``type``.

Bodies (``data``, ``result``, ``config``, ``metadata``, formats) are `msgspec.Raw`: JSON text that is passed on and
never decoded. An absent body is `ABSENT`. As lenient as the SDKs need: an optional field may be missing or null,
unknown fields are ignored, the order of keys is free. ``omit_defaults`` keeps nulls off the wire.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import msgspec
from msgspec import Raw

ABSENT: Final = Raw(b"")
NULL: Final = Raw(b"null")
EMPTY_OBJECT: Final = Raw(b"{}")


def present(body: Raw) -> Raw:
    """``body``, or `ABSENT` where it is missing or null: what may be encoded as an optional field."""
    return ABSENT if is_null(body) else body


def is_null(body: Raw) -> bool:
    """Whether a body is missing or null, which the protocol treats alike."""
    return body is ABSENT or (memoryview(body).nbytes in (0, 4) and bytes(body) in (b"", b"null"))


class WireMessage(msgspec.Struct, tag_field="type", omit_defaults=True, kw_only=True):
    """Base of all messages."""


class ErrorBody(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Why a call or registration failed. A null ``stacktrace`` must never be sent (spec protocol §1.4)."""

    code: str
    message: str
    stacktrace: str | None = None


class Action(msgspec.Struct, omit_defaults=True, kw_only=True):
    """How a call is to be run: ``void``, or ``enqueue`` with the name of a queue."""

    type: Literal["void", "enqueue"]
    queue: str | None = None


class RegisterTriggerType(WireMessage, tag="registertriggertype"):
    """A worker offers to provide a type of triggers."""

    id: str
    description: str | None = None
    trigger_request_format: Raw = ABSENT
    call_request_format: Raw = ABSENT


class UnregisterTriggerType(WireMessage, tag="unregistertriggertype"):
    """A worker no longer provides a type of triggers."""

    id: str


class RegisterTrigger(WireMessage, tag="registertrigger"):
    """Bind a function to events; the engine passes it on to the provider of the type."""

    id: str
    trigger_type: str
    function_id: str
    config: Raw = ABSENT
    metadata: Raw = ABSENT


class TriggerRegistrationResult(WireMessage, tag="triggerregistrationresult"):
    """What a provider made of a trigger; without ``error`` it accepted."""

    id: str
    trigger_type: str
    function_id: str
    error: ErrorBody | None = None


class UnregisterTrigger(WireMessage, tag="unregistertrigger"):
    """Undo `RegisterTrigger`. Towards a provider ``trigger_type`` is always there."""

    id: str
    trigger_type: str | None = None


class RegisterFunction(WireMessage, tag="registerfunction"):
    """A worker offers a function. ``invocation`` describes one that is called over HTTP."""

    id: str
    description: str | None = None
    request_format: Raw = ABSENT
    response_format: Raw = ABSENT
    metadata: Raw = ABSENT
    invocation: Raw = ABSENT


class UnregisterFunction(WireMessage, tag="unregisterfunction"):
    """A worker takes a function back."""

    id: str


class InvokeFunction(WireMessage, tag="invokefunction"):
    """Call a function. From a worker, no ``invocation_id`` means that no answer is wanted."""

    function_id: str
    invocation_id: str | None = None
    data: Raw = ABSENT
    traceparent: str | None = None
    baggage: str | None = None
    action: Action | None = None
    metadata: Raw = ABSENT


class InvocationResult(WireMessage, tag="invocationresult"):
    """The answer to `InvokeFunction`; neither ``result`` nor ``error`` is success with null."""

    invocation_id: str
    function_id: str
    result: Raw = ABSENT
    error: ErrorBody | None = None
    traceparent: str | None = None
    baggage: str | None = None


class RegisterService(WireMessage, tag="registerservice"):
    """Sent by SDKs before 0.20; accepted, without effect."""

    id: str


class Reattach(WireMessage, tag="reattach"):
    """First message of a worker that comes back, to end its old connection (spec protocol §1.10)."""

    previous_worker_id: str
    reattach_token: str | None = None


class Ping(WireMessage, tag="ping"):
    """Asks for `Pong`."""


class Pong(WireMessage, tag="pong"):
    """Answers `Ping`."""


class WorkerRegistered(WireMessage, tag="workerregistered"):
    """First message of the engine on every worker connection."""

    worker_id: str
    reattach_token: str


class RegistrationRejected(WireMessage, tag="registrationrejected"):
    """A function that was not registered. SDKs from 0.23 on log it and go on; older ones ignore it (§1.5, §9.1)."""

    code: str
    namespace: str
    function_id: str
    owner_worker_id: str


class AccessError(WireMessage, tag="error"):
    """Why a connection is about to be closed."""

    error: ErrorBody


FromWorker: TypeAlias = (
    RegisterTriggerType
    | UnregisterTriggerType
    | RegisterTrigger
    | TriggerRegistrationResult
    | UnregisterTrigger
    | RegisterFunction
    | UnregisterFunction
    | InvokeFunction
    | InvocationResult
    | RegisterService
    | Reattach
    | Ping
    | Pong
)
ToWorker: TypeAlias = (
    RegisterTrigger
    | TriggerRegistrationResult
    | UnregisterTrigger
    | InvokeFunction
    | InvocationResult
    | Pong
    | WorkerRegistered
    | RegistrationRejected
    | AccessError
)
