"""The engine's heart: what each message of a worker does.

Plain single-threaded Python without a single await: every message is handled in one step, so that no other task ever
sees a half-made change, and a worker's messages take effect in the order in which they were sent.
"""

from __future__ import annotations

import hmac
import uuid
import weakref
from typing import TYPE_CHECKING, Final

from iii_core.engine import invocations
from iii_core.engine.budget import REGISTRATION_OVERHEAD, Budget, size_of
from iii_core.engine.functions import Function, FunctionTable
from iii_core.engine.triggers import TriggerTable, refusal
from iii_core.protocol import codes
from iii_core.protocol import messages as m
from iii_core.protocol.codec import TooManyFields, body_of, call_frame, with_caller
from iii_core.protocol.limits import BAGGAGE_LENGTH, TRACEPARENT_LENGTH

if TYPE_CHECKING:
    from collections.abc import Collection

    from msgspec import Raw

    from iii_core.engine.endpoint import Endpoint
    from iii_core.protocol.limits import EngineLimits

ENQUEUE_FUNCTION: Final = "engine::queue::enqueue"
RESERVED: Final = "engine::"
DEFAULT_NAMESPACE: Final = "default"
UNSERVED: Final = "it is to be called over HTTP, and no worker of this engine does that"


class Topology:
    """Who is told what changed; the callbacks are part of the change and must not wait."""

    def worker_event(self, event: str, worker: Endpoint) -> None:
        """A worker joined, described itself or left (``worker_connected`` …)."""

    def functions_changed(self) -> None:
        """A function appeared or vanished."""

    def registrations_changed(self) -> None:
        """What a worker offers or binds changed."""


class Router:
    """Routing state and the one way to change it. For the trio thread only.

    Attributes:
        workers: attached workers by id.
    """

    def __init__(self, limits: EngineLimits, topology: Topology) -> None:
        self.limits = limits
        self.topology = topology
        self.workers: dict[str, Endpoint] = {}
        self.functions = FunctionTable(topology.functions_changed)
        self.triggers = TriggerTable(Budget(limits.worker_registrations_bytes, "all calls of engine::register_trigger"))
        self._call_ids = invocations.call_ids()
        self._origins: weakref.WeakValueDictionary[str | None, Budget] = weakref.WeakValueDictionary()

    def origin(self, sandbox: str | None) -> Budget:
        """What the workers of one sandbox, or all outside of any, may register together; while one of them is there."""
        budget = self._origins.get(sandbox)
        if budget is None:
            whose = "all workers of one sandbox" if sandbox is not None else "all workers outside of sandboxes"
            budget = self._origins[sandbox] = Budget(self.limits.origin_registrations_bytes, whose)
        return budget

    def attach(self, worker: Endpoint) -> None:
        """Let a worker join."""
        worker.attached = True
        self.workers[worker.id] = worker
        self.topology.worker_event("worker_connected", worker)

    def detach(self, worker: Endpoint) -> None:
        """Clean up after a worker, in the order of spec protocol §1.10. Only the first call does anything.

        A graceful end, a lost connection and an eviction all come here, so that they leave the same state behind.
        """
        if not worker.attached:
            return
        worker.attached = False
        self.functions.release(worker)
        invocations.halt(worker)
        self.triggers.release(worker)
        del self.workers[worker.id]
        self.topology.worker_event("worker_disconnected", worker)

    def handle(self, worker: Endpoint, message: m.FromWorker) -> None:
        """Do what a message asks for. Messages of a worker that left are ignored."""
        if not worker.attached:
            return
        match message:
            case m.InvokeFunction():
                self.invoke(worker, message)
            case m.InvocationResult():
                invocations.finish(worker, message.invocation_id, message.result, message.error)
            case m.RegisterFunction():
                self.register_function(worker, message, message.id)
            case m.UnregisterFunction():
                worker.unserved.discard(message.id)
                if self.functions.remove(worker, message.id):
                    self.topology.registrations_changed()
            case m.RegisterTrigger():
                self.register_trigger(worker, message)
            case m.UnregisterTrigger():
                if self.triggers.remove(message.id, worker):
                    self.topology.registrations_changed()
            case m.TriggerRegistrationResult():
                self.triggers.result(worker, message)
            case m.RegisterTriggerType():
                self.register_trigger_type(worker, message)
            case m.UnregisterTriggerType():
                if self.triggers.remove_type(worker, message.id):
                    self.topology.registrations_changed()
            case m.Ping():
                worker.send(m.Pong(), worker)
            case m.Reattach():
                self._reattach(worker, message)
            case m.RegisterService() | m.Pong():
                pass

    def register_function(self, worker: Endpoint, message: m.RegisterFunction, wire_id: str) -> None:
        """Register a function; ``wire_id`` is the worker's own name for it.

        A refusal is logged. The protocol can tell a worker of one kind alone, an id that is somebody else's (§1.5).
        """
        limit, known = self.limits.functions, self.functions.get(message.id)
        size = size_of(message)
        reason = (
            self._refuse_id(worker, message.id, "function")
            or self._refuse_size(size)
            or _refuse_bytes(worker.registered, size, known.size if known and known.owner is worker else 0)
            or _refuse_count(worker, wire_id, worker.functions, limit, "functions")
            or self._refuse_http(worker, message)
        )
        if reason is not None:
            worker.complain(f"refused the function {message.id[:100]!r}: {reason}")
            if message.id.startswith(RESERVED) and self._refuse_length(message.id) is None:
                worker.send(self._rejection(message.id), worker)
            return
        worker.unserved.discard(message.id)
        worker.ready = True
        self.functions.add(worker, message, wire_id)
        self.topology.registrations_changed()

    def register_trigger(self, worker: Endpoint, message: m.RegisterTrigger) -> None:
        """Register a trigger; a worker whose trigger is over a limit gets a refusal."""
        limit = self.limits.triggers
        reason = self.refuse_trigger(message, worker.registered) or _refuse_count(
            worker, message.id, worker.triggers, limit, "triggers"
        )
        if reason is not None:
            worker.complain(f"refused the trigger {message.id[:100]!r}: {reason}")
            worker.send(refusal(message, m.ErrorBody(code=codes.LIMIT_EXCEEDED, message=reason)), worker)
            return
        worker.ready = True
        self.triggers.add(worker, message)
        self.topology.registrations_changed()

    def refuse_trigger(self, message: m.RegisterTrigger, budget: Budget) -> str | None:
        """Why a trigger is over a limit of length or size, or None."""
        known, size = self.triggers.get(message.id), size_of(message)
        for identifier in (message.id, message.trigger_type, message.function_id):
            reason = self._refuse_length(identifier)
            if reason is not None:
                return reason
        replaced = known.size if known is not None and known.budget is budget else 0
        return self._refuse_size(size) or _refuse_bytes(budget, size, replaced)

    def register_trigger_type(self, worker: Endpoint, message: m.RegisterTriggerType) -> None:
        """Register a trigger type; a refusal is logged, never sent."""
        limit, known, size = self.limits.trigger_types, self.triggers.type(message.id), size_of(message)
        reason = (
            self._refuse_id(worker, message.id, "trigger type")
            or self._refuse_size(size)
            or _refuse_bytes(worker.registered, size, known.size if known and known.provider is worker else 0)
            or _refuse_count(worker, message.id, worker.trigger_types, limit, "trigger types")
        )
        if reason is not None:
            worker.complain(f"refused the trigger type {message.id[:100]!r}: {reason}")
            return
        worker.ready = True
        self.triggers.add_type(worker, message)
        self.topology.registrations_changed()

    def invoke(self, caller: Endpoint, request: m.InvokeFunction) -> None:
        """Route a call: access, middleware, then what its action says (spec protocol §1.7)."""
        reason = self._refuse_length(request.function_id) or self._refuse_length(request.invocation_id or "")
        if reason is not None:
            invocations.fail(caller, request, codes.LIMIT_EXCEEDED, reason)
            return
        if request.traceparent is not None and len(request.traceparent) > TRACEPARENT_LENGTH:
            request.traceparent = None
        if request.baggage is not None and len(request.baggage) > BAGGAGE_LENGTH:
            request.baggage = None
        function = self.functions.get(request.function_id)
        denied = caller.policy.refuse_invocation(request.function_id, function)
        if denied is not None:
            invocations.fail(caller, request, codes.FORBIDDEN, denied)
        elif caller.policy.middleware is not None and not request.function_id.startswith(RESERVED):
            self._through_middleware(caller, request, caller.policy.middleware)
        elif request.action is not None and request.action.type == "enqueue":
            self._enqueue(caller, request)
        elif function is None:
            text = f"Function {request.function_id} not found"
            if any(request.function_id in worker.unserved for worker in self.workers.values()):
                text += f": {UNSERVED}"
            invocations.fail(caller, request, codes.FUNCTION_NOT_FOUND, text)
        else:
            try:
                data = request.data if caller.trusted else with_caller(request.data, caller.id)
            except TooManyFields as error:
                invocations.fail(caller, request, codes.LIMIT_EXCEEDED, error.message)
            else:
                self._call(caller, request, function, data)

    def _call(
        self, caller: Endpoint, request: m.InvokeFunction, function: Function, data: Raw, receipt: Raw | None = None
    ) -> None:
        limits, text = self.limits, None
        if invocations.answer_id(request) is not None:
            if len(caller.calls) >= limits.calls_in_flight:
                text = f"a worker may have {limits.calls_in_flight} calls without an answer"
            elif caller.held_bytes > limits.held_bytes:
                text = f"a worker may have {limits.held_bytes} bytes of calls without an answer"
        if text is not None:
            invocations.fail(caller, request, codes.LIMIT_EXCEEDED, text)
            return
        if len(function.owner.executing) >= limits.calls_executing:
            text = f"the worker of {function.id} has not answered {limits.calls_executing} calls"
            invocations.fail(caller, request, codes.LIMIT_EXCEEDED, text)
            return
        metadata = request.metadata if receipt is None else m.ABSENT
        invocation_id = next(self._call_ids)
        message = call_frame(request, invocation_id, function.wire_id, data, metadata)
        invocation = invocations.begin(invocation_id, caller, function.owner, request, receipt)
        reason = function.owner.deliver(message, invocation)
        if reason is not None:
            error = m.ErrorBody(code=codes.CHANNEL_SEND_FAILED, message=reason)
            invocations.finish(function.owner, invocation.id, m.ABSENT, error)

    def _enqueue(self, caller: Endpoint, request: m.InvokeFunction) -> None:
        queue = request.action.queue if request.action else None
        function = self.functions.get(ENQUEUE_FUNCTION)
        if queue is None or function is None:
            reason = "the call names no queue"
            if function is None:
                reason = (
                    f"no queue worker is running: nothing provides {ENQUEUE_FUNCTION} (add iii-queue to config.yaml)"
                )
            invocations.fail(caller, request, codes.ENQUEUE_ERROR, reason)
            return
        receipt = str(uuid.uuid4())
        item: dict[str, object] = {
            "queue": queue,
            "function_id": request.function_id,
            "data": m.NULL if m.is_null(request.data) else request.data,
            "messageReceiptId": receipt,
        }
        if request.traceparent is not None:
            item["traceparent"] = request.traceparent
        if request.baggage is not None:
            item["baggage"] = request.baggage
        self._call(caller, request, function, body_of(item), body_of({"messageReceiptId": receipt}))

    def _through_middleware(self, caller: Endpoint, request: m.InvokeFunction, middleware: str) -> None:
        function = self.functions.get(middleware)
        if function is None:
            text = f"Function {middleware} not found (the middleware of this listener)"
            invocations.fail(caller, request, codes.FUNCTION_NOT_FOUND, text)
            return
        payload: dict[str, object] = {
            "function_id": request.function_id,
            "payload": m.NULL if m.is_null(request.data) else request.data,
            "action": request.action,
            "context": caller.policy.context or m.EMPTY_OBJECT,
        }
        self._call(caller, request, function, body_of(payload))

    def _reattach(self, worker: Endpoint, message: m.Reattach) -> None:
        """End the connection that ``worker`` had before. A wrong claim is ignored in silence (spec protocol §1.10)."""
        old = self.workers.get(message.previous_worker_id)
        token = message.reattach_token or ""
        expected = old.reattach_token if old is not None else ""
        if not hmac.compare_digest(token.encode("utf-8", "replace"), expected.encode()) or not expected:
            return
        if old is None or old is worker:
            return
        self.detach(old)
        old.drop("its worker came back on another connection")

    def _refuse_id(self, worker: Endpoint, identifier: str, kind: str) -> str | None:
        if identifier.startswith(RESERVED) and not worker.trusted:
            return f"{kind} ids that begin with {RESERVED} belong to the engine"
        if not identifier:
            return f"an empty {kind} id"
        return self._refuse_length(identifier)

    def _refuse_http(self, worker: Endpoint, message: m.RegisterFunction) -> str | None:
        """A function that is called over HTTP is not the worker's own to run; its callers are told why (§7)."""
        if m.is_null(message.invocation):
            return None
        if len(worker.unserved) < self.limits.functions:
            worker.unserved.add(message.id)
        return UNSERVED

    def _rejection(self, function_id: str) -> m.RegistrationRejected:
        owner = self.functions.get(function_id)
        return m.RegistrationRejected(
            code=codes.FUNCTION_NAMESPACE_CONFLICT,
            namespace=DEFAULT_NAMESPACE,
            function_id=function_id,
            owner_worker_id=owner.owner.id if owner is not None else "",
        )

    def _refuse_length(self, identifier: str) -> str | None:
        limit = self.limits.id_length
        if len(identifier) <= limit and (identifier.isascii() or len(identifier.encode()) <= limit):
            return None
        return f"an id may have {self.limits.id_length} bytes"

    def _refuse_size(self, size: int) -> str | None:
        if size <= self.limits.registration_bytes:
            return None
        return f"one registration may have {self.limits.registration_bytes} bytes"


def _refuse_bytes(budget: Budget, size: int, replaced: int) -> str | None:
    return budget.refuse(size + REGISTRATION_OVERHEAD - replaced)


def _refuse_count(worker: Endpoint, identifier: str, owned: Collection[str], limit: int, what: str) -> str | None:
    if worker.trusted or identifier in owned or len(owned) < limit:
        return None
    return f"a worker may register {limit} {what}"
