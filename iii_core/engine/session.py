"""One connection of a worker: a task that reads and handles frames in order, one that writes, and a watchdog.

Ownership: the session owns its peer and its outbox; whatever ends it (a close, a loss, an eviction, a stall, the
engine's shutdown), the router forgets the worker exactly once and the connection is dropped without a close frame,
because old SDKs reconnect only then (spec protocol §11 #3).
"""

from __future__ import annotations

import logging
import time
import uuid
from typing import TYPE_CHECKING, Final

import trio

from iii_core.engine.endpoint import Endpoint, WorkerRecord, now_ms
from iii_core.engine.outbox import Outbox
from iii_core.protocol import messages as m
from iii_core.protocol.codec import TELEMETRY_KINDS, MalformedFrame, decode, encode
from iii_core.transport.port import Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from iii_core.engine.invocations import Invocation
    from iii_core.engine.policy import Policy
    from iii_core.engine.router import Router
    from iii_core.protocol.messages import FromWorker, InvokeFunction, ToWorker
    from iii_core.transport.port import Peer

log = logging.getLogger(__name__)

WATCH_TICKS: Final = 4
"""How often per ``stall_timeout`` the watchdog looks."""
LONG_STEP: Final = 0.02
"""Seconds after which the handling of one message counts as long: nobody else's are handled meanwhile."""
REST: Final = 2
"""After a long message the worker's next one waits this many times as long, so that others get on in between."""
LONGEST_REST: Final = 5.0
HANDLER_GRACE: Final = 0.05
"""Seconds that a worker has, after it announced a trigger type, before it is handed triggers that have waited for one.

iii-sdk 0.25.0 for Python announces a type from one thread and notes its handler after that: a trigger that its other
thread reads in between is lost without a word (one of 300).
"""


class Session(Endpoint):
    """A worker connected through a transport.

    Args:
        router: what its messages act on.
        peer: the connection, of which the session becomes the owner.
        policy: what the worker may do.
        telemetry: is given the telemetry frames of this worker.
    """

    def __init__(
        self, router: Router, peer: Peer, policy: Policy, telemetry: Callable[[Endpoint, bytes], None]
    ) -> None:
        request = peer.request
        record = WorkerRecord(
            id=str(uuid.uuid4()),
            connected_at_ms=now_ms(),
            ip_address=request.remote,
            sandbox=request.sandbox,
        )
        super().__init__(record, router.limits, policy, router.origin(request.sandbox))
        self._router = router
        self._peer = peer
        self._telemetry = telemetry
        self._outbox = Outbox(router.limits)
        self._scope = trio.CancelScope()
        self._sending = 0
        self._batches = 0
        self._received = 0.0

    async def run(self) -> None:
        """Serve the worker until its connection ends. Never raises for what the worker does."""
        self.attached = True
        self.send(m.WorkerRegistered(worker_id=self.id, reattach_token=self.reattach_token), None)
        self._router.attach(self)
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write, name=f"writer of {self.id}")
                    nursery.start_soon(self._watch, name=f"watchdog of {self.id}")
                    await self._read()
                    self._scope.cancel()
        finally:
            self._router.detach(self)
            self._outbox.close()
            self._peer.abort()

    def send(self, message: ToWorker, payer: Endpoint | None) -> None:
        """As `Endpoint.send`."""
        if not self.attached:
            return
        frame = encode(message)
        if self._outbox.has_room(len(frame)):
            self._outbox.put(frame, payer.credit if payer else None)
        else:
            self.drop("it does not read its messages, and the queue for them is full")

    def deliver(self, message: InvokeFunction, invocation: Invocation) -> str | None:
        """As `Endpoint.deliver`."""
        full = f"worker {self.record.name or self.id} does not keep up: its queue is full"
        if not self._outbox.has_room(memoryview(message.data).nbytes):
            return full  # without the work of encoding what is too long anyway
        frame = encode(message)
        if not self._outbox.has_room(len(frame)):
            return full
        caller = invocation.caller
        payer = self if caller is None or caller.charges_receiver else caller
        self._outbox.put(frame, payer.credit)
        return None

    def drop(self, reason: str) -> None:
        """As `Endpoint.drop`."""
        log.warning("dropping the connection of %r: %s", self, reason)
        self._outbox.close()
        self._peer.abort()
        self._scope.cancel()

    async def _read(self) -> None:
        while True:
            try:
                batch = await self._peer.receive_many()
            except (trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError):
                return
            self._received = trio.current_time()
            for frame in batch:
                await self._handle_frame(frame)
                if self.credit.exhausted:
                    await self.credit.restored()

    async def _handle_frame(self, frame: Message) -> None:
        if not frame.text and frame.data[:4] in TELEMETRY_KINDS:
            self._telemetry(self, frame.data)
            return
        start = time.perf_counter()
        message: FromWorker | None = None
        try:
            message = decode(frame.data, text=frame.text)
            if isinstance(message, m.RegisterFunction | m.RegisterTrigger | m.RegisterTriggerType):
                start += await self._register(message)
            elif message is not None:
                self._router.handle(self, message)
        except MalformedFrame as error:
            self.complain(error.message)
        except Exception:  # a fault of ours must not end the worker's connection, nor other workers'
            log.exception("could not handle a %s of %r", type(message).__name__, self)
        spent = time.perf_counter() - start
        if spent > LONG_STEP:
            await trio.sleep(min(REST * spent, LONGEST_REST))

    async def _register(self, message: m.RegisterFunction | m.RegisterTrigger | m.RegisterTriggerType) -> float:
        """Register what the policy makes of it; gives the seconds that were waited, for the policy and else."""
        router, start, waited = self._router, time.perf_counter(), 0.0
        match message:
            case m.RegisterFunction():
                function = await self.policy.register_function(message)
                waited = time.perf_counter() - start
                if function is not None and self.attached:
                    router.register_function(self, function, message.id)
            case m.RegisterTrigger():
                trigger = await self.policy.register_trigger(message)
                waited = time.perf_counter() - start
                if trigger is not None and self.attached:
                    router.register_trigger(self, trigger)
            case m.RegisterTriggerType():
                trigger_type = await self.policy.register_trigger_type(message)
                if trigger_type is not None and any(
                    trigger.provider is not self for trigger in router.triggers.of_type(trigger_type.id)
                ):
                    await trio.sleep_until(self._received + HANDLER_GRACE)
                waited = time.perf_counter() - start
                if trigger_type is not None and self.attached:
                    router.register_trigger_type(self, trigger_type)
        return waited

    async def _write(self) -> None:
        try:
            while True:
                batch = await self._outbox.take()
                frames = [Message(data=entry.frame) for entry in batch]
                self._sending = sum(len(entry.frame) for entry in batch)
                try:
                    await self._peer.send_many(frames)
                finally:
                    self._sending = 0
                    self._batches += 1
                    self._outbox.settle(batch)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._scope.cancel()

    async def _watch(self) -> None:
        """Drop the connection when it takes nothing for ``stall_timeout``, give or take a tick."""
        limits = self._router.limits
        before: tuple[int, int | None] = (-1, None)
        stalled = 0.0
        while True:
            await trio.sleep(limits.stall_timeout / WATCH_TICKS)
            now = self._batches, self._peer.progress
            stalled = stalled + limits.stall_timeout / WATCH_TICKS if self._sending and now == before else 0.0
            before = now
            guess = 0.0 if now[1] is not None else self._sending / limits.stall_rate
            if stalled >= limits.stall_timeout + guess:
                self.drop(f"it has taken nothing for {stalled:.3g} s")
                return
