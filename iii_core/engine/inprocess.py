"""The API of workers that live inside the engine: what `open` of an `InProcessWorker` record is given.

An in-process worker is a worker like any other (it is listed, its functions are called by the same router, its triggers
are bound by the same table); only the socket is missing. Everything here is for the engine's trio thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from iii_core.errors import InvocationError
from iii_core.protocol import codes
from iii_core.protocol.messages import is_null

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from msgspec import Raw

    from iii_core.engine.channels import ChannelReader, ChannelWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call as a handler gets it.

    Attributes:
        function_id: the function called.
        data: the payload's JSON text; `json` decodes it.
        caller_worker_id: who called (set by the engine, not by the caller), or None once the caller has left.
        metadata: JSON text of the side-car, or None.
        traceparent, baggage: the caller's W3C trace context, or None.
    """

    function_id: str
    data: Raw
    caller_worker_id: str | None
    metadata: Raw | None = None
    traceparent: str | None = None
    baggage: str | None = None

    def json(self, type: Any = Any) -> Any:
        """The payload, decoded (and checked against ``type``, as `msgspec.json.decode` does).

        Raises:
            InvocationError: ``deserialization_error``, which the caller gets if the handler lets it pass.
        """
        try:
            return msgspec.json.decode(self.data, type=type)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise InvocationError(codes.DESERIALIZATION_ERROR, f"bad input for {self.function_id}: {error}") from error


Handler: TypeAlias = Callable[[Call], Awaitable[Any]]
"""Runs one call in a task of its own. What it returns is encoded as JSON (a `msgspec.Raw` is passed on as it is).

An `InvocationError` gives the caller its code; any other exception gives ``invocation_failed`` with its text.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerBinding:
    """A trigger as its provider gets it. ``config`` and ``metadata`` are JSON text; no metadata is None.

    To fire: ``client.fire(binding.function_id, payload, metadata=binding.metadata)``.
    """

    id: str
    trigger_type: str
    function_id: str
    config: Raw
    metadata: Raw | None

    def json(self, type: Any = Any) -> Any:
        """The config, decoded and checked. Raises ``msgspec.ValidationError``, which refuses the trigger."""
        return msgspec.json.decode(self.config, type=type)


class TriggerProvider(ABC):
    """Provides a type of triggers. The calls for one type come one after the other, in order."""

    @abstractmethod
    async def register(self, binding: TriggerBinding) -> None:
        """Start to fire. An exception refuses the trigger: its text goes to whoever registered it."""

    @abstractmethod
    async def unregister(self, binding: TriggerBinding) -> None:
        """Stop to fire. Called for ids that are registered here alone; an exception is logged."""


class EngineClient(ABC):
    """A worker inside the engine. As a context manager it leaves the engine at the end of the block.

    The methods that are not ``async`` never wait and may be called from any task of the engine's thread.
    After `close` they raise `EngineError`.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """The worker's name."""

    @property
    @abstractmethod
    def worker_id(self) -> str:
        """The worker's id: its name, with a number behind it where the name is taken."""

    @abstractmethod
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
        """Offer a function, replacing one of that id. Formats are JSON Schemas.

        Raises:
            UsageError: the id is empty or longer than the engine's limit, or there are too many.
        """

    @abstractmethod
    def unregister_function(self, function_id: str) -> None:
        """Take a function back; calls of it that run already are finished. Idempotent."""

    @abstractmethod
    def register_trigger_type(
        self,
        trigger_type: str,
        provider: TriggerProvider,
        *,
        description: str | None = None,
        trigger_request_format: Mapping[str, Any] | None = None,
        call_request_format: Mapping[str, Any] | None = None,
    ) -> None:
        """Provide a type of triggers; the triggers that wait for one are handed over at once."""

    @abstractmethod
    def unregister_trigger_type(self, trigger_type: str) -> None:
        """Stop to provide a type; its triggers wait for another provider. Idempotent."""

    @abstractmethod
    def register_trigger(
        self,
        trigger_type: str,
        function_id: str,
        config: Any = None,
        *,
        metadata: Any = None,
        trigger_id: str | None = None,
    ) -> str:
        """Bind a function to events, now or as soon as the type has a provider. Gives the trigger's id.

        ``config`` None is ``{}``. A provider's refusal is logged and leaves the trigger waiting.
        """

    @abstractmethod
    def unregister_trigger(self, trigger_id: str) -> bool:
        """Undo `register_trigger`; False if there is no such trigger."""

    @abstractmethod
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
        """Call a function and give its decoded result (None for none).

        Cancelling, like the timeout, stops the waiting; the callee is not told (spec protocol §1.7).

        Args:
            payload: what JSON can express, or a `msgspec.Raw` of JSON text.
            timeout: seconds, or None to wait for ever.

        Raises:
            InvocationError: the call failed; code ``TIMEOUT`` if it took too long.
            UsageError: JSON cannot express the payload or the metadata.
        """

    @abstractmethod
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
        """As `trigger`, with the result as JSON text; None for none."""

    @abstractmethod
    def fire(
        self,
        function_id: str,
        payload: Any = None,
        *,
        metadata: Any = None,
        traceparent: str | None = None,
        baggage: str | None = None,
    ) -> None:
        """Call a function without an answer; failures are logged. Raises `UsageError` as `trigger` does."""

    @abstractmethod
    def enqueue(self, queue: str, function_id: str, payload: Any = None) -> Awaitable[Any]:
        """Put a call into a named queue; gives ``{"messageReceiptId": …}``. Raises as `trigger` does."""

    @abstractmethod
    def create_channel(self, buffer_size: int = 64) -> tuple[dict[str, str], dict[str, str]]:
        """A new streaming channel: the references of its writer and its reader, to put into payloads or open here.

        Whoever has a reference can open that end, once. A channel of which an end stays unopened goes after 5 minutes.

        Raises:
            InvocationError: ``limit_exceeded``.
        """

    @abstractmethod
    def open_writer(self, ref: Mapping[str, Any]) -> ChannelWriter:
        """Take the writing end of a channel. Raises `EngineError`: there is none, or it is taken."""

    @abstractmethod
    def open_reader(self, ref: Mapping[str, Any]) -> ChannelReader:
        """Take the reading end of a channel. Raises `EngineError`: there is none, or it is taken."""

    @abstractmethod
    def close(self) -> None:
        """Leave the engine: what is registered goes, running handlers are cancelled, callers are told. Idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def optional(body: Raw) -> Raw | None:
    """A body of the wire as the API shows it."""
    return None if is_null(body) else body
