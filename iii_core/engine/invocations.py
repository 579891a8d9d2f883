"""Calls on their way: who asked, who executes, and where the answer goes.

Towards a callee every call has an id of the engine's own, and an answer counts only if it comes from that callee: an id
that a caller chose, or repeats, can reach nobody else's call (spec protocol §11 #12).
"""

from __future__ import annotations

import itertools
import logging
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iii_core.protocol import codes
from iii_core.protocol.messages import ABSENT, ErrorBody, InvocationResult, present

if TYPE_CHECKING:
    from collections.abc import Iterator

    from msgspec import Raw

    from iii_core.engine.endpoint import Endpoint
    from iii_core.protocol.messages import InvokeFunction

log = logging.getLogger(__name__)

STOPPED = ErrorBody(code=codes.INVOCATION_STOPPED, message="Invocation stopped")


@dataclass(slots=True, eq=False)
class Invocation:
    """One call that its callee has not answered yet.

    Attributes:
        id: the engine's, towards the callee.
        request: what the caller sent, as far as the answer needs it: its id, function id and trace context. None once
            the caller left.
        caller: None once it left.
        receipt: the receipt that a queued call is answered with instead of its queue's own result.
        held: bytes of the call that are kept until its answer, on its caller's account.
    """

    id: str
    request: InvokeFunction | None
    caller: Endpoint | None
    callee: Endpoint
    receipt: Raw | None = None
    held: int = 0


def answer_id(request: InvokeFunction) -> str | None:
    """The id under which the caller wants its answer, or None if it wants none."""
    void = request.action is not None and request.action.type == "void"
    return None if void else request.invocation_id


def call_ids() -> Iterator[str]:
    """Ids for calls, of one engine alone: UUIDs with a number in the end. They need not be hard to guess."""
    prefix = str(uuid.uuid4())[:24]
    return (f"{prefix}{number:012x}" for number in itertools.count())


def answer(caller: Endpoint, request: InvokeFunction, result: Raw = ABSENT, error: ErrorBody | None = None) -> None:
    """Send a caller the outcome of its call, if it wants one, with its own trace context echoed."""
    invocation_id = answer_id(request)
    if invocation_id is None:
        if error is not None:
            caller.complain(f"void call of {request.function_id[:100]!r} failed: {error.code}: {error.message[:200]!r}")
        return
    message = InvocationResult(
        invocation_id=invocation_id,
        function_id=request.function_id,
        result=ABSENT if error else present(result),
        error=error,
        traceparent=request.traceparent,
        baggage=request.baggage,
    )
    caller.send(message, caller)


def fail(caller: Endpoint, request: InvokeFunction, code: str, message: str) -> None:
    """Send a caller an error."""
    answer(caller, request, error=ErrorBody(code=code, message=message))


def begin(
    invocation_id: str, caller: Endpoint, callee: Endpoint, request: InvokeFunction, receipt: Raw | None = None
) -> Invocation:
    """Enter a call into both workers' books, before anything of it can reach the callee.

    A call without an answer is in the callee's alone: a callee that never ends one costs its caller nothing. Of the
    request only what the answer needs is kept.
    """
    invocation = Invocation(invocation_id, request, caller, callee, receipt)
    request.data = request.metadata = ABSENT  # or the whole frame would be kept
    identifier = answer_id(request)
    if identifier is None:
        request.invocation_id = request.traceparent = request.baggage = None
    else:
        invocation.held = len(identifier) + len(request.traceparent or "") + len(request.baggage or "")
        caller.held_bytes += invocation.held
        caller.calls.add(invocation)
    callee.executing[invocation.id] = invocation
    return invocation


def finish(callee: Endpoint, invocation_id: str, result: Raw, error: ErrorBody | None) -> bool:
    """Take an answer of ``callee``; False for one that is late, a duplicate, or not its to give."""
    invocation = callee.executing.pop(invocation_id, None)
    if invocation is None:
        log.debug("ignored a result of %r for the unknown call %r", callee, invocation_id)
        return False
    _settle(invocation, result, error)
    return True


def _settle(invocation: Invocation, result: Raw, error: ErrorBody | None) -> None:
    caller, request = invocation.caller, invocation.request
    if caller is None or request is None:
        return
    caller.calls.discard(invocation)
    caller.held_bytes -= invocation.held
    if invocation.receipt is None:
        answer(caller, request, result, error)
    elif error is None:
        answer(caller, request, invocation.receipt)
    else:
        text = f"the queue refused the call: {error.code}: {error.message}"
        fail(caller, request, codes.ENQUEUE_ERROR, text)


def halt(worker: Endpoint) -> None:
    """End every call made by or executing on a worker that left: its callers are told, its callees are not."""
    for invocation in list(worker.calls):
        invocation.caller = invocation.request = None
    worker.calls.clear()
    stopped = list(worker.executing.values())
    worker.executing.clear()
    for invocation in stopped:
        _settle(invocation, ABSENT, STOPPED)
