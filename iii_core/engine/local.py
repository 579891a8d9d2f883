"""An in-process worker as the router sees it; its author sees `iii_core.engine.client.LocalClient`."""

from __future__ import annotations

import logging
import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from iii_core.engine.budget import size_of
from iii_core.engine.endpoint import Endpoint, WorkerRecord, now_ms
from iii_core.engine.inprocess import Call, Handler, TriggerBinding, TriggerProvider, optional
from iii_core.errors import IIIError, InvocationError
from iii_core.protocol import codes
from iii_core.protocol import messages as m
from iii_core.protocol.codec import body_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from msgspec import Raw

    from iii_core.engine.credit import Credit
    from iii_core.engine.invocations import Invocation
    from iii_core.engine.router import Router
    from iii_core.protocol.messages import InvokeFunction, ToWorker

log = logging.getLogger(__name__)


class LocalWorker(Endpoint):
    """The endpoint of an in-process worker. Each call runs in a task of the engine's nursery, within ``scope``."""

    trusted = True

    def __init__(self, router: Router, nursery: trio.Nursery, record: WorkerRecord) -> None:
        super().__init__(record, router.limits)
        self.ready = True
        self.router = router
        self.handlers: dict[str, Handler] = {}
        self.providers: dict[str, trio.MemorySendChannel[Told]] = {}
        self.waiting: dict[str, Waiter] = {}
        self._nursery = nursery
        self._scopes: set[trio.CancelScope] = set()

    def send(self, message: ToWorker, payer: Endpoint | None) -> None:
        """As `Endpoint.send`: an answer wakes its waiter, a trigger goes to its provider."""
        match message:
            case m.InvocationResult():
                waiter = self.waiting.get(message.invocation_id)
                if waiter is not None:
                    waiter.answer(message)
            case m.RegisterTrigger() | m.UnregisterTrigger():
                channel = self.providers.get(message.trigger_type or "")
                if channel is not None:
                    credit = payer.credit if payer is not None and not payer.trusted else None
                    channel.send_nowait(Told(message, size_of(message), credit))
            case _:
                pass

    def deliver(self, message: InvokeFunction, invocation: Invocation) -> str | None:
        """As `Endpoint.deliver`: the handler starts in a task of its own."""
        handler = self.handlers.get(message.function_id)
        if handler is None:
            return f"worker {self.record.name} has no handler for {message.function_id}"
        caller = invocation.caller
        size = memoryview(message.data).nbytes
        if caller is not None:
            if caller.held_bytes + size > self.limits.held_bytes and caller.held_bytes > invocation.held:
                return f"a worker may have {self.limits.held_bytes} bytes of calls inside the engine"
            invocation.held += size
            caller.held_bytes += size
        call = Call(
            function_id=message.function_id,
            data=message.data,
            caller_worker_id=caller.id if caller else None,
            metadata=optional(message.metadata),
            traceparent=message.traceparent,
            baggage=message.baggage,
        )
        self._nursery.start_soon(self._run, handler, call, invocation.id, name=f"{message.function_id} of {self.id}")
        return None

    def drop(self, reason: str) -> None:
        """As `Endpoint.drop`: cancels what runs."""
        log.debug("closing %r: %s", self, reason)
        for channel in self.providers.values():
            channel.close()
        for scope in list(self._scopes):
            scope.cancel()
        for waiter in list(self.waiting.values()):
            waiter.stop()

    def provide(self, trigger_type: str, provider: TriggerProvider) -> None:
        """Start the task that hands triggers of a type to their provider, one by one."""
        previous = self.providers.pop(trigger_type, None)
        if previous is not None:
            previous.close()
        send, receive = trio.open_memory_channel[Told](math.inf)  # bounded by the credit of those who register
        self.providers[trigger_type] = send
        self._nursery.start_soon(self._serve, provider, receive, name=f"triggers of {trigger_type}")

    async def _run(self, handler: Handler, call: Call, invocation_id: str) -> None:
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                if not self.attached:
                    return
                message = m.InvocationResult(invocation_id=invocation_id, function_id=call.function_id)
                try:
                    result = await handler(call)
                    message = msgspec.structs.replace(message, result=_encoded(result, call.function_id))
                except Exception as error:  # a handler's fault is its caller's answer, never the engine's end
                    message = msgspec.structs.replace(message, error=_error_of(error, call.function_id))
                self.router.handle(self, message)
            finally:
                self._scopes.discard(scope)

    async def _serve(
        self,
        provider: TriggerProvider,
        channel: trio.MemoryReceiveChannel[Told],
    ) -> None:
        bindings: dict[str, TriggerBinding] = {}
        with trio.CancelScope() as scope, channel:
            self._scopes.add(scope)
            try:
                async for told in channel:
                    with told:
                        if isinstance(told.message, m.RegisterTrigger):
                            await self._register(provider, told.message, bindings)
                        elif (binding := bindings.pop(told.message.id, None)) is not None:
                            await self._unregister(provider, binding)
            finally:
                self._scopes.discard(scope)
                with suppress(trio.WouldBlock, trio.EndOfChannel):
                    while True:
                        with channel.receive_nowait():
                            pass

    async def _register(
        self, provider: TriggerProvider, message: m.RegisterTrigger, bindings: dict[str, TriggerBinding]
    ) -> None:
        binding = TriggerBinding(
            id=message.id,
            trigger_type=message.trigger_type,
            function_id=message.function_id,
            config=message.config,
            metadata=optional(message.metadata),
        )
        error: m.ErrorBody | None = None
        try:
            await provider.register(binding)
            bindings[binding.id] = binding
        except Exception as exception:  # whatever a provider raises refuses the trigger
            text = exception.message if isinstance(exception, IIIError) else str(exception)
            error = m.ErrorBody(code=codes.TRIGGER_REGISTRATION_FAILED, message=text or type(exception).__name__)
        result = m.TriggerRegistrationResult(
            id=binding.id, trigger_type=binding.trigger_type, function_id=binding.function_id, error=error
        )
        self.router.handle(self, result)

    async def _unregister(self, provider: TriggerProvider, binding: TriggerBinding) -> None:
        try:
            await provider.unregister(binding)
        except Exception:  # the trigger is gone whatever its provider says
            log.exception("%s: the provider of %r could not let go of %r", self, binding.trigger_type, binding.id)


class Told:
    """What a provider is to be told, on the credit of whoever caused it until the ``with`` block ends."""

    __slots__ = ("_credit", "_size", "message")

    def __init__(self, message: m.RegisterTrigger | m.UnregisterTrigger, size: int, credit: Credit | None) -> None:
        self.message = message
        self._size = size
        self._credit = credit
        if credit is not None:
            credit.take(size)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc: object) -> None:
        if self._credit is not None:
            self._credit.give(self._size)


class Waiter:
    """One call that a task waits for."""

    __slots__ = ("_done", "outcome")

    def __init__(self) -> None:
        self._done = trio.Event()
        self.outcome: m.InvocationResult | None = None

    def answer(self, message: m.InvocationResult) -> None:
        self.outcome = message
        self._done.set()

    def stop(self) -> None:
        self._done.set()

    async def wait(self) -> m.InvocationResult | None:
        await self._done.wait()
        return self.outcome


def make_record(name: str, taken: Mapping[str, object], version: str, description: str | None = None) -> WorkerRecord:
    """The record of an in-process worker (spec protocol §3.2): its id is its name, numbered where that is taken."""
    identifier, number = name, 1
    while identifier in taken:
        number += 1
        identifier = f"{name}#{number}"
    return WorkerRecord(
        id=identifier,
        connected_at_ms=now_ms(),
        name=name,
        version=version,
        runtime="engine",
        isolation="in-process",
        description=description,
    )


def _encoded(result: Any, function_id: str) -> Raw:
    try:
        return m.present(body_of(result))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvocationError(codes.SERIALIZATION_ERROR, f"the result of {function_id} is not JSON: {error}") from error


def _error_of(error: Exception, function_id: str) -> m.ErrorBody:
    if isinstance(error, InvocationError):
        return m.ErrorBody(code=error.code, message=error.message, stacktrace=error.stacktrace)
    log.warning("the function %s failed", function_id, exc_info=error)
    text = error.message if isinstance(error, IIIError) else str(error)
    return m.ErrorBody(code=codes.INVOCATION_FAILED, message=text or type(error).__name__)
