"""The `EngineClient` of an in-process worker."""

from __future__ import annotations

import math
import uuid
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from iii_core.engine.channels import DEFAULT_ITEMS, ChannelReader, ChannelWriter
from iii_core.engine.inprocess import EngineClient, optional
from iii_core.engine.local import LocalWorker, Waiter
from iii_core.errors import EngineError, InvocationError, UsageError
from iii_core.protocol import codes
from iii_core.protocol import messages as m
from iii_core.protocol.codec import body_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from msgspec import Raw

    from iii_core.engine.channels import ChannelTable
    from iii_core.engine.inprocess import Handler, TriggerProvider


class LocalClient(EngineClient):
    """`EngineClient` over a `LocalWorker`."""

    def __init__(self, worker: LocalWorker, channels: ChannelTable) -> None:
        self._channels = channels
        self._worker = worker
        self._router = worker.router

    @property
    def name(self) -> str:
        """As `EngineClient.name`."""
        return self._worker.record.name or self._worker.id

    @property
    def worker_id(self) -> str:
        """As `EngineClient.worker_id`."""
        return self._worker.id

    def register_function(
        self,
        function_id: str,
        handler: Handler,
        *,
        description: str | None = None,
        request_format: Mapping[str, Any] | None = None,
        response_format: Mapping[str, Any] | None = None,
        metadata: Any = None,
    ) -> None:
        """As `EngineClient.register_function`."""
        self._check_open()
        message = m.RegisterFunction(
            id=function_id,
            description=description,
            request_format=_body(request_format),
            response_format=_body(response_format),
            metadata=_body(metadata),
        )
        self._worker.handlers[function_id] = handler
        self._router.handle(self._worker, message)
        if function_id not in self._worker.functions:
            del self._worker.handlers[function_id]
            raise UsageError(f"the engine refused the function {function_id!r}", hint="the log says why")

    def unregister_function(self, function_id: str) -> None:
        """As `EngineClient.unregister_function`."""
        self._router.handle(self._worker, m.UnregisterFunction(id=function_id))
        self._worker.handlers.pop(function_id, None)

    def register_trigger_type(
        self,
        trigger_type: str,
        provider: TriggerProvider,
        *,
        description: str | None = None,
        trigger_request_format: Mapping[str, Any] | None = None,
        call_request_format: Mapping[str, Any] | None = None,
    ) -> None:
        """As `EngineClient.register_trigger_type`."""
        self._check_open()
        if trigger_type in self._worker.trigger_types:  # the new provider must be told of all triggers again
            self._router.handle(self._worker, m.UnregisterTriggerType(id=trigger_type))
        self._worker.provide(trigger_type, provider)
        message = m.RegisterTriggerType(
            id=trigger_type,
            description=description,
            trigger_request_format=_body(trigger_request_format),
            call_request_format=_body(call_request_format),
        )
        self._router.handle(self._worker, message)

    def unregister_trigger_type(self, trigger_type: str) -> None:
        """As `EngineClient.unregister_trigger_type`."""
        self._router.handle(self._worker, m.UnregisterTriggerType(id=trigger_type))
        channel = self._worker.providers.pop(trigger_type, None)
        if channel is not None:
            channel.close()

    def register_trigger(
        self,
        trigger_type: str,
        function_id: str,
        config: Any = None,
        *,
        metadata: Any = None,
        trigger_id: str | None = None,
    ) -> str:
        """As `EngineClient.register_trigger`."""
        self._check_open()
        message = m.RegisterTrigger(
            id=trigger_id or str(uuid.uuid4()),
            trigger_type=trigger_type,
            function_id=function_id,
            config=_body(config),
            metadata=_body(metadata),
        )
        self._router.handle(self._worker, message)
        return message.id

    def unregister_trigger(self, trigger_id: str) -> bool:
        """As `EngineClient.unregister_trigger`."""
        known = self._router.triggers.get(trigger_id) is not None
        self._router.handle(self._worker, m.UnregisterTrigger(id=trigger_id))
        return known

    async def trigger(
        self,
        function_id: str,
        payload: Any = None,
        *,
        metadata: Any = None,
        timeout: float | None = None,
        traceparent: str | None = None,
        baggage: str | None = None,
    ) -> Any:
        """As `EngineClient.trigger`."""
        result = await self.trigger_raw(
            function_id, payload, metadata=metadata, timeout=timeout, traceparent=traceparent, baggage=baggage
        )
        return None if result is None else msgspec.json.decode(result)

    async def trigger_raw(
        self,
        function_id: str,
        payload: Any = None,
        *,
        metadata: Any = None,
        timeout: float | None = None,
        traceparent: str | None = None,
        baggage: str | None = None,
    ) -> Raw | None:
        """As `EngineClient.trigger_raw`."""
        request = m.InvokeFunction(
            function_id=function_id,
            invocation_id=str(uuid.uuid4()),
            data=_body(payload),
            metadata=_body(metadata),
            traceparent=traceparent,
            baggage=baggage,
        )
        return await self._call(request, timeout)

    def fire(
        self,
        function_id: str,
        payload: Any = None,
        *,
        metadata: Any = None,
        traceparent: str | None = None,
        baggage: str | None = None,
    ) -> None:
        """As `EngineClient.fire`."""
        self._check_open()
        request = m.InvokeFunction(
            function_id=function_id,
            data=_body(payload),
            metadata=_body(metadata),
            traceparent=traceparent,
            baggage=baggage,
        )
        self._router.handle(self._worker, request)

    async def enqueue(self, queue: str, function_id: str, payload: Any = None) -> Any:
        """As `EngineClient.enqueue`."""
        request = m.InvokeFunction(
            function_id=function_id,
            invocation_id=str(uuid.uuid4()),
            data=_body(payload),
            action=m.Action(type="enqueue", queue=queue),
        )
        result = await self._call(request, None)
        return None if result is None else msgspec.json.decode(result)

    def create_channel(self, buffer_size: int = DEFAULT_ITEMS) -> tuple[dict[str, str], dict[str, str]]:
        """As `EngineClient.create_channel`."""
        self._check_open()
        channel = self._channels.create(self.worker_id, buffer_size)
        return channel.ref("write"), channel.ref("read")

    def open_writer(self, ref: Mapping[str, Any]) -> ChannelWriter:
        """As `EngineClient.open_writer`."""
        end = self._channels.open({**ref, "direction": "write"})
        assert isinstance(end, ChannelWriter)
        return end

    def open_reader(self, ref: Mapping[str, Any]) -> ChannelReader:
        """As `EngineClient.open_reader`."""
        end = self._channels.open({**ref, "direction": "read"})
        assert isinstance(end, ChannelReader)
        return end

    def close(self) -> None:
        """As `EngineClient.close`."""
        if self._worker.attached:
            self._router.detach(self._worker)
            self._worker.drop("it left")

    def _check_open(self) -> None:
        if not self._worker.attached:
            raise EngineError(
                f"the in-process worker {self.name!r} has left the engine",
                hint="it was closed, or its engine has ended; get another one from a running engine's client()",
            )

    async def _call(self, request: m.InvokeFunction, seconds: float | None) -> Raw | None:
        self._check_open()
        worker = self._worker
        await worker.credit.restored()
        waiter = Waiter()
        assert request.invocation_id is not None
        worker.waiting[request.invocation_id] = waiter
        try:
            self._router.handle(worker, request)
            with trio.move_on_after(math.inf if seconds is None else seconds) as scope:
                await waiter.wait()
        finally:
            del worker.waiting[request.invocation_id]
        outcome = waiter.outcome
        if outcome is None:
            if scope.cancelled_caught:
                text = f"{request.function_id} gave no answer within {seconds:g} s"
                raise InvocationError(codes.TIMEOUT, text)
            raise InvocationError(codes.INVOCATION_STOPPED, f"the worker {self.name!r} left the engine")
        if outcome.error is not None:
            raise InvocationError(outcome.error.code, outcome.error.message, outcome.error.stacktrace)
        return optional(outcome.result)


def _body(value: Any) -> Raw:
    if value is None:
        return m.ABSENT
    try:
        return body_of(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(f"cannot be sent as JSON: {error}") from error
