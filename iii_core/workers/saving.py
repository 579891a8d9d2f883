"""Saving a worker while it runs: who may, and how its run goes about it.

A worker that is saved stands still for a moment and goes on. Its link breaks, here and in every copy that is restored,
so its process is released before that and adopted over the next link. Its connections to the engine are cut *before*
it is saved, and it is saved once it has come back and waits to be let in: so a restored copy is connected as soon as an
engine opens the door, and not after the delay that its SDK takes before it tries again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import trio

from iii_core.errors import (
    ConfigIoError,
    IIIError,
    SandboxError,
    UnsupportedOperation,
    WorkerNotRunning,
    leading_error,
)
from iii_core.link.nursery import open_service_nursery
from iii_core.project.files import hint_for
from iii_core.sandbox.port import Capability
from iii_core.workers.state import Phase

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from iii_core.sandbox.agent import Agent, AgentProcess
    from iii_core.workers.run import WorkerRun
    from iii_core.workers.snapshots import SnapshotStore

KEY: Final = "worker"
"""What the worker's process is kept under (``docs/protocol/agent.md``, "ADOPT")."""
COME_BACK_PATIENCE: Final = 5.0
"""Seconds for the worker to connect again. The SDKs wait for a second, give or take 30 %, before they try."""
SWEEP_LIMIT: Final = 30.0


class _Order:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done = trio.Event()
        self.error: IIIError | None = None
        self.given_up = False
        self._step = trio.CancelScope()

    def step(self) -> trio.CancelScope:
        """A scope for the next step, which ends when the order is given up."""
        self._step = trio.CancelScope()
        if self.given_up:
            self._step.cancel()
        return self._step

    def give_up(self) -> None:
        """Nobody wants it any more. Idempotent."""
        self.given_up = True
        self._step.cancel()


class SaveOrders:
    """One order at a time to save a run's sandbox: `save` gives it, the run carries it out step by step."""

    def __init__(self) -> None:
        self._order: _Order | None = None
        self._ended: str | None = None
        self._changed = trio.lowlevel.ParkingLot()

    @property
    def under_way(self) -> bool:
        """Whether the worker is being saved."""
        return self._order is not None

    async def save(self, folder: Path) -> None:
        """Have the sandbox saved to a folder that is not there yet; returns when the worker has been taken over again.

        Cancelled, it leaves no folder, and the worker runs on. Not while it is `under_way`. Raises `SandboxError`,
        `WorkerNotRunning`.
        """
        assert self._order is None
        if self._ended is not None:
            await trio.lowlevel.checkpoint()
            raise _ended_meanwhile(self._ended)
        order = self._order = _Order(folder)
        self._changed.unpark_all()
        try:
            await order.done.wait()
        finally:
            order.give_up()
        if order.error is not None:
            raise order.error

    # --- for the run ---

    async def prepare(self, agent: Agent, process: AgentProcess, report: Callable[[Phase], None]) -> None:
        """Wait for an order, then get the worker to where it can be saved: released, and waiting at the door."""
        while True:
            while (order := self._order) is None:
                await self._changed.park()
            report(Phase.SAVING)
            with order.step():
                await agent.hold_connections(COME_BACK_PATIENCE)
            if not order.given_up:
                await process.release(KEY)  # and then its output ends, and this task with it
                await trio.sleep_forever()
            agent.let_in_connections()
            self.finish()
            report(Phase.STARTING)

    async def carry_out(self, save: Callable[[Path], Awaitable[None]], stop: trio.Event) -> None:
        """Save; what fails is told to whoever gave the order. A ``stop`` gives it up."""
        order = self._order
        assert order is not None
        try:
            with order.step():
                async with open_service_nursery() as nursery:
                    nursery.start_soon(_give_up_when, stop, order)
                    await save(order.folder)
                    return
        except IIIError as error:
            order.error = error
        except ExceptionGroup as group:
            leader = leading_error(group)
            if not isinstance(leader, IIIError):
                raise
            order.error = leader
        else:
            order.error = WorkerNotRunning("the worker was stopped before it was saved")

    def finish(self) -> None:
        """The worker is taken over again: whoever gave the order hears of how it went."""
        order, self._order = self._order, None
        if order is not None:
            order.done.set()

    def end(self, name: str) -> None:
        """The run has ended."""
        self._ended = name
        if self._order is not None and self._order.error is None:
            self._order.error = _ended_meanwhile(name)
        self.finish()


def _ended_meanwhile(name: str) -> WorkerNotRunning:
    return WorkerNotRunning(f"worker {name!r} ended while it was saved", hint=f"see 'iii worker logs {name}'")


async def _give_up_when(event: trio.Event, order: _Order) -> None:
    await event.wait()
    order.give_up()


class SnapshotKeeper:
    """The snapshot of one worker, which is changed by one task at a time: those that delete wait for one that saves.

    Attributes:
        store: where it is; to be read at any time, and changed through this class alone.
    """

    def __init__(self, name: str, store: SnapshotStore) -> None:
        self.store = store
        self._name = name
        self._changing = trio.Lock()

    async def take(self, run: WorkerRun) -> dict[str, Any]:
        """Save a worker that runs and is ready, in the place of an older snapshot; what there is then.

        Cancelled or failed, the older one stays, and nothing of a new one. The worker runs on, if it can.

        Raises:
            UnsupportedOperation: it cannot be saved where and as it runs; it was not disturbed.
            SandboxError: saving failed.
            WorkerNotRunning: it ended meanwhile; or it is being saved already, or its snapshot deleted.
        """
        _require_saveable(run)
        try:
            self._changing.acquire_nowait()  # without a checkpoint since the caller saw that the worker is ready
        except trio.WouldBlock:
            raise self._busy() from None
        try:
            if run.saves.under_way:  # for somebody who has left
                raise self._busy()
            return await _take(run, self.store)
        finally:
            self._changing.release()

    async def drop(self) -> bool:
        """Delete it; whether there was one. Raises `ConfigIoError`."""
        async with self._changing:
            try:
                return await trio.to_thread.run_sync(self.store.drop)
            except OSError as error:
                raise ConfigIoError(
                    f"the snapshot of {self._name!r} cannot be deleted: {error}", hint=hint_for(error)
                ) from error

    async def sweep(self) -> None:
        """See `SnapshotStore.sweep`."""
        async with self._changing:
            await trio.to_thread.run_sync(self.store.sweep)

    def _busy(self) -> WorkerNotRunning:
        return WorkerNotRunning(
            f"worker {self._name!r} is being saved already, or its snapshot is being deleted",
            hint="try again when that is done",
            details={"name": self._name},
        )


async def _take(run: WorkerRun, store: SnapshotStore) -> dict[str, Any]:
    assert run.state.image is not None
    image, fits = run.state.image.reference, run.fits
    state = await trio.to_thread.run_sync(store.begin)
    try:
        await run.saves.save(state)
        await _commit(store, state, image, fits)
    except BaseException:
        with trio.move_on_after(SWEEP_LIMIT, shield=True):
            await trio.to_thread.run_sync(store.sweep)
        raise
    facts = await trio.to_thread.run_sync(store.facts)
    if facts is None:
        raise SandboxError("the snapshot was deleted as soon as it was taken", hint="take it again")
    return facts


async def _commit(store: SnapshotStore, state: Path, image: str, fits: dict[str, str]) -> None:
    try:
        await trio.to_thread.run_sync(store.commit, state, image, fits)
    except OSError as error:
        raise SandboxError(f"the snapshot cannot be kept: {error}", hint="is the disk full?") from error


def _require_saveable(run: WorkerRun) -> None:
    name, backend, sandbox, agent = run.spec.name, run.state.backend, run.state.sandbox, run.agent
    if backend is None or sandbox is None or agent is None:
        raise WorkerNotRunning(f"worker {name!r} is not running", hint=f"start it with 'iii worker start {name}'")
    if Capability.SNAPSHOT not in backend.capabilities:
        raise _unsupported(
            f"the sandbox backend {backend.name} does not support snapshots",
            "choose a backend that has them ('iii sandbox backends')",
            backend.name,
        )
    if sandbox.not_saveable is not None:
        raise _unsupported(
            f"worker {name!r} cannot be saved: {sandbox.not_saveable}", "change that, or do without", backend.name
        )
    for what, there in (("network access (egress)", run.spec.egress), ("mounts", run.spec.mounts)):
        if there:
            raise _unsupported(
                f"worker {name!r} has {what}, and such workers cannot be saved",
                "what is outside does not go back in time with it; leave it out of the worker's sandbox settings",
                backend.name,
            )
    if not agent.hands_over:
        raise _unsupported(
            f"the guest agent of worker {name!r} is too old to be saved", f"'iii worker restart {name}'", backend.name
        )


def _unsupported(message: str, hint: str, backend: str) -> UnsupportedOperation:
    return UnsupportedOperation(
        message, hint=hint, details={"backend": backend, "capability": Capability.SNAPSHOT.value}
    )
