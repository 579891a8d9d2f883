"""The engine as a worker of itself: the ``engine::*`` functions and the two trigger types of discovery.

Its functions run at once, in the step that routes the call, so that an answer always shows the state that the caller's
earlier messages led to.
"""

from __future__ import annotations

import logging
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
import trio
from msgspec import Raw

from iii_core.engine import invocations
from iii_core.engine.answers import Answers, encode_bounded
from iii_core.engine.channels import ChannelTable
from iii_core.engine.describe import clean, describe
from iii_core.engine.discovery import QUERIES, arguments
from iii_core.engine.endpoint import Endpoint, WorkerRecord, now_ms
from iii_core.engine.metrics import latest_metrics
from iii_core.engine.router import Router, Topology
from iii_core.engine.rows import function_row
from iii_core.errors import EngineNotRunning, InvocationError
from iii_core.protocol import codes
from iii_core.protocol import messages as m
from iii_core.protocol.codec import body_of, is_object

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from iii_core.engine.invocations import Invocation
    from iii_core.protocol.limits import EngineLimits
    from iii_core.protocol.messages import InvokeFunction, ToWorker

    Builtin: TypeAlias = Callable[[Endpoint, Raw], Any]

log = logging.getLogger(__name__)
worker_log = logging.getLogger("iii.worker")

NAME: Final = "iii-engine-functions"
WORKERS_AVAILABLE: Final = "engine::workers-available"
REGISTER_TRIGGER: Final = "engine::register_trigger"
FUNCTIONS_AVAILABLE: Final = "engine::functions-available"
COALESCE: Final = 0.1
"""Seconds within which changes of functions become one event."""
REST: Final = 10
"""An event that took long to write is followed by a pause of so many times that."""
PROVIDER_TIMEOUT: Final = 10.0
"""Seconds that ``engine::register_trigger`` gives a provider; silence is success (spec protocol §1.6)."""
LOG_LEVELS: Final = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}


class CoreWorker(Endpoint, Topology):
    """The engine's own worker. ``run`` must run while the engine does.

    Attributes:
        channels: the streaming channels of this engine.
        telemetry_sinks: called with worker id and frame for each telemetry frame.
        generation: counts the changes that `changed` tells of.
    """

    trusted = True
    charges_receiver = True

    def __init__(self, limits: EngineLimits, nursery: trio.Nursery, version: str) -> None:
        record = WorkerRecord(id=NAME, connected_at_ms=now_ms(), name=NAME, version=version, internal=True)
        record.runtime, record.isolation = "engine", "in-process"
        super().__init__(record, limits)
        self.ready = True
        self.router = Router(limits, self)
        self.channels = ChannelTable(limits)
        self.telemetry_sinks: list[Callable[[str, bytes], None]] = []
        self.generation = 0
        self._ended = False
        self._nursery = nursery
        self._changes = trio.lowlevel.ParkingLot()
        self._bindings: dict[str, dict[str, m.RegisterTrigger]] = {WORKERS_AVAILABLE: {}, FUNCTIONS_AVAILABLE: {}}
        self._due: set[str] = set()
        self._dirty = trio.Event()
        self._answers = Answers(self.router)
        self._builtins: dict[str, Builtin] = {}
        self._join()

    async def run(self) -> None:
        """Tell ``engine::functions-available`` of changes, coalesced. Runs until cancelled."""
        pause = COALESCE
        while True:
            await self._dirty.wait()
            await trio.sleep(pause)
            start = trio.current_time()
            self._dirty = trio.Event()
            self._tell_functions()
            pause = max(COALESCE, REST * (trio.current_time() - start))

    def _tell_functions(self) -> None:
        """Send what is due; to a worker that does not keep up, later, and then the functions of then."""
        due, self._due = self._due, set()
        bindings = self._bindings[FUNCTIONS_AVAILABLE]
        targets: list[m.RegisterTrigger] = []
        for trigger_id in sorted(due & bindings.keys()):
            function = self.router.functions.get(bindings[trigger_id].function_id)
            if function is not None and function.owner.credit.exhausted:
                self._due.add(trigger_id)
                self._dirty.set()
            else:
                targets.append(bindings[trigger_id])
        if not targets:
            return
        snapshot = sorted((function_row(found) for found in self.router.functions), key=_function_id)
        try:
            event = encode_bounded({"event": "functions_changed", "functions": snapshot}, self.limits.answer_bytes)
        except InvocationError:
            self.complain(f"the list of functions is too long for {FUNCTIONS_AVAILABLE}: nobody is told of the change")
        else:
            self._fire(targets, event)

    def end(self) -> None:
        """The engine is over: in-process workers leave it, and whoever waits for an answer or a change is told."""
        self._ended = True
        for worker in list(self.router.workers.values()):
            if worker.trusted and worker is not self:
                self.router.detach(worker)
                worker.drop("the engine has ended")
        self._changes.unpark_all()

    def check_running(self) -> None:
        """Raises `EngineNotRunning` once the engine has ended."""
        if self._ended:
            raise EngineNotRunning("this engine has ended", hint="use it only inside the block of its open_engine()")

    async def changed(self, generation: int) -> int:
        """Wait for a change after ``generation``; gives the new one. Raises as `check_running`, also later on."""
        self.check_running()
        while self.generation == generation:
            await self._changes.park()
            self.check_running()
        await trio.lowlevel.checkpoint()
        return self.generation

    def worker_event(self, event: str, worker: Endpoint) -> None:
        """As `Topology.worker_event`."""
        self._notify()
        if not worker.record.internal:
            payload = body_of({"event": event, "worker_id": worker.id})
            self._fire(list(self._bindings[WORKERS_AVAILABLE].values()), payload)

    def functions_changed(self) -> None:
        """As `Topology.functions_changed`. Who subscribes later is not told of this change."""
        self._due.update(self._bindings[FUNCTIONS_AVAILABLE])
        if self._due:
            self._dirty.set()

    def registrations_changed(self) -> None:
        """As `Topology.registrations_changed`."""
        self._notify()

    def telemetry(self, worker: Endpoint | None, frame: bytes) -> None:
        """Take a telemetry frame, of a worker's connection or of a separate one."""
        if frame[:4] == b"MTRC" and len(frame) <= self.limits.registration_bytes:
            for worker_id, metrics in latest_metrics(frame[4:], worker.id if worker else None).items():
                found = self.router.workers.get(worker_id)
                if found is not None and not found.trusted:
                    found.record.latest_metrics = {**(found.record.latest_metrics or {}), **metrics}
        for sink in self.telemetry_sinks:
            try:
                sink(worker.id if worker else "", frame)
            except Exception:  # telemetry must not disturb what it watches
                log.exception("a telemetry sink failed")

    def send(self, message: ToWorker, payer: Endpoint | None) -> None:
        """As `Endpoint.send`: keeps the bindings of its trigger types, so many of each owner."""
        match message:
            case m.RegisterTrigger():
                bindings, error = self._bindings[message.trigger_type], None
                if self._owned(bindings, message.id) >= self.limits.subscriptions:
                    text = f"a worker may have {self.limits.subscriptions} triggers of {message.trigger_type}"
                    error = m.ErrorBody(code=codes.LIMIT_EXCEEDED, message=text)
                else:
                    bindings[message.id] = message
                answer = m.TriggerRegistrationResult(
                    id=message.id, trigger_type=message.trigger_type, function_id=message.function_id, error=error
                )
                self.router.handle(self, answer)
            case m.UnregisterTrigger():
                self._bindings[message.trigger_type or ""].pop(message.id, None)
            case _:
                pass

    def deliver(self, message: InvokeFunction, invocation: Invocation) -> str | None:
        """As `Endpoint.deliver`: runs the function at once."""
        caller = invocation.caller
        assert caller is not None, "a call is delivered while its caller makes it"
        if message.function_id == REGISTER_TRIGGER:
            self._register_trigger(caller, message.data, invocation)
            return None
        try:
            result, error = self._builtins[message.function_id](caller, message.data), None
            body = m.ABSENT if result is None else body_of(result)
        except InvocationError as failure:
            body, error = m.ABSENT, m.ErrorBody(code=failure.code, message=failure.message)
        invocations.finish(self, invocation.id, body, error)
        return None

    def _owned(self, bindings: Collection[str], trigger_id: str) -> int:
        """How many of some triggers have the same owner as this one."""
        owners = [trigger.owner for found in bindings if (trigger := self.router.triggers.get(found)) is not None]
        this = self.router.triggers.get(trigger_id)
        return owners.count(this.owner if this is not None else None)

    def drop(self, reason: str) -> None:
        """As `Endpoint.drop`: there is nothing to cut."""

    def _join(self) -> None:
        self.router.attach(self)
        for function_id, (_, description) in QUERIES.items():
            self._offer(function_id, partial(self._discover, function_id), description)
        self._offer("engine::workers::register", self._register_worker, "Describe the calling worker")
        self._offer(REGISTER_TRIGGER, None, "Bind a function to events, for good")
        self._offer("engine::unregister_trigger", self._unregister_trigger, "Remove a trigger")
        self._offer("engine::channels::create", self._create_channel, "Create a streaming channel")
        for level in LOG_LEVELS:
            self._offer(f"engine::log::{level}", partial(self._log, level), "Write a line to the engine's log")
        for type_id, text in (
            (WORKERS_AVAILABLE, "A worker connected, described itself or disconnected"),
            (FUNCTIONS_AVAILABLE, "Functions were registered or unregistered"),
        ):
            self.router.register_trigger_type(self, m.RegisterTriggerType(id=type_id, description=text))

    def _offer(self, function_id: str, builtin: Builtin | None, description: str) -> None:
        if builtin is not None:
            self._builtins[function_id] = builtin
        self.router.register_function(self, m.RegisterFunction(id=function_id, description=description), function_id)

    def _notify(self) -> None:
        self.generation += 1
        self._changes.unpark_all()

    def _fire(self, bindings: list[m.RegisterTrigger], data: Raw) -> None:
        for binding in bindings:
            request = m.InvokeFunction(function_id=binding.function_id, data=data, metadata=binding.metadata)
            self.router.invoke(self, request)

    def _discover(self, function_id: str, caller: Endpoint, data: Raw) -> Raw:
        return self._answers.get(function_id, caller, data, self.generation)

    def _arguments(self, data: Raw) -> dict[str, Any]:
        return arguments(data, self.limits.registration_bytes)

    def _register_worker(self, caller: Endpoint, data: Raw) -> Any:
        describe(caller.record, self._arguments(data))
        caller.ready = True
        self.worker_event("worker_metadata_updated", caller)
        return {"success": True}

    def _create_channel(self, caller: Endpoint, data: Raw) -> Any:
        channel = self.channels.create(caller.id, self._arguments(data).get("buffer_size"))
        return {"writer": channel.ref("write"), "reader": channel.ref("read")}

    def _unregister_trigger(self, caller: Endpoint, data: Raw) -> Any:
        identifier = self._arguments(data).get("id")
        if not isinstance(identifier, str):
            raise InvocationError(codes.INVALID_ARGUMENTS, "missing 'id'")
        removed = self.router.triggers.remove(identifier, caller)
        if removed:
            self._notify()
        return {"removed": removed}

    def _log(self, level: str, caller: Endpoint, data: Raw) -> None:
        given = self._arguments(data)
        service = given.get("service_name")
        name = service if isinstance(service, str) and service else caller.record.name or caller.id
        text = given.get("message")
        message = clean(text if isinstance(text, str) else "", 4096)
        worker_log.log(LOG_LEVELS[level], "%s: %s", clean(name), message, extra={"iii_worker_id": caller.id})

    def _register_trigger(self, caller: Endpoint, data: Raw, invocation: Invocation) -> None:
        try:
            message = self._durable_trigger(caller, data)
        except InvocationError as failure:
            error = m.ErrorBody(code=failure.code, message=failure.message)
            invocations.finish(self, invocation.id, m.ABSENT, error)
            return
        answered = trio.Event()
        refusals: list[m.ErrorBody] = []

        def outcome(error: m.ErrorBody | None) -> None:
            refusals.extend([error] if error else [])
            answered.set()

        self.router.triggers.add(None, message, outcome, payer=caller)
        self._notify()
        trigger = self.router.triggers.get(message.id)
        if trigger is not None and not trigger.active and not refusals:
            answered.set()
        self._nursery.start_soon(self._await_provider, message.id, invocation.id, answered, refusals)

    async def _await_provider(
        self, trigger_id: str, invocation_id: str, answered: trio.Event, refusals: list[m.ErrorBody]
    ) -> None:
        with trio.move_on_after(PROVIDER_TIMEOUT):
            await answered.wait()
        body, error = body_of({"id": trigger_id}), None
        if refusals:
            self.router.triggers.remove(trigger_id, None)
            error = m.ErrorBody(code=codes.TRIGGER_REGISTRATION_FAILED, message=refusals[0].message)
        invocations.finish(self, invocation_id, body, error)

    def _durable_trigger(self, caller: Endpoint, data: Raw) -> m.RegisterTrigger:
        try:
            given = msgspec.json.decode(data if is_object(data) else b"{}", type=_TriggerArguments)
        except msgspec.MsgspecError as error:
            raise InvocationError(codes.INVALID_ARGUMENTS, str(error)) from error
        denied = caller.policy.refuse_trigger_type(given.trigger_type)
        if denied is not None:
            raise InvocationError(codes.FORBIDDEN, denied)
        message = m.RegisterTrigger(
            id=str(uuid.uuid4()),
            trigger_type=given.trigger_type,
            function_id=caller.policy.expose(given.function_id),
            config=m.NULL if given.config is m.ABSENT else given.config,
            metadata=given.metadata,
        )
        reason = self.router.refuse_trigger(message, self.router.triggers.ownerless)
        if sum(found.owner is None for found in self.router.triggers) >= self.limits.triggers:
            reason = f"there are {self.limits.triggers} triggers without an owner already"
        if reason is not None:
            raise InvocationError(codes.LIMIT_EXCEEDED, reason)
        return message


class _TriggerArguments(msgspec.Struct):
    trigger_type: str
    function_id: str
    config: Raw = m.ABSENT
    metadata: Raw = m.ABSENT


def _function_id(row: dict[str, Any]) -> str:
    return str(row["function_id"])
