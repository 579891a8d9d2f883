"""The supervisor of one managed worker: whether it should run, and what happens when it ends.

Policy: ``on-failure``. A run that fails is followed by another after a growing delay; one that exits with 0 has done
its work and stays stopped; one that *cannot* work until somebody changes something (a wrong image, an unset variable, a
program that is not there) is ``failed`` at once.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import trio

from iii_core.errors import (
    BackendUnavailable,
    ConfigError,
    IIIError,
    ImageError,
    PluginError,
    ProcessSpawnError,
    RegistryUnreachable,
    SandboxDied,
    SandboxRefused,
    StartTimeout,
    UnsupportedOperation,
    UsageError,
    WorkerNotRunning,
    leading_error,
)
from iii_core.workers.run import RunPlaces, WorkerRun
from iii_core.workers.saving import SnapshotKeeper
from iii_core.workers.snapshots import SnapshotStore
from iii_core.workers.state import History, Phase, WorkerState

if TYPE_CHECKING:
    from collections.abc import Callable

    from iii_core.sandbox.agent import Agent, ExitStatus
    from iii_core.workers.plan import WorkerPlan
    from iii_core.workers.services import WorkerServices
    from iii_core.workers.spec import WorkerSpec

FIRST_DELAY: Final = 1.0
LONGEST_DELAY: Final = 30.0
PATIENCE: Final = 3
"""Failed runs after which nobody waits any longer for the worker to be ready."""
STEADY_AFTER: Final = 30.0  # a run that lasted this long was fine; the next delay is the first one again
_log = logging.getLogger(__name__)
HOPELESS: Final = (
    ConfigError,
    ImageError,
    PluginError,
    ProcessSpawnError,
    BackendUnavailable,
    SandboxRefused,
    UnsupportedOperation,
    UsageError,  # what cannot be asked of the agent
)


def is_hopeless(error: BaseException) -> bool:
    """Whether trying again cannot help until somebody changes something."""
    return isinstance(error, HOPELESS) and not isinstance(error, RegistryUnreachable)


class Supervisor:
    """Runs one worker for as long as `run` runs. The other methods may be called from any task."""

    def __init__(self, spec: WorkerSpec, sandbox_id: str, services: WorkerServices, places: RunPlaces) -> None:
        self._spec = spec
        self._id = sandbox_id
        self._services = services
        self._places = places
        self._wanted = True
        self._phase = Phase.PREPARING
        self._hurry = False
        self._warm = True
        self._changed = trio.lowlevel.ParkingLot()
        self._run: WorkerRun | None = None
        self._delay = FIRST_DELAY
        self._state = WorkerState()
        self._refused: IIIError | None = None
        self._told: str | None = None
        self.history = History()
        self.snapshots = SnapshotKeeper(spec.name, SnapshotStore(places.snapshots))

    @property
    def spec(self) -> WorkerSpec:
        """What is run (from the next run on, where it has just been replaced)."""
        return self._spec

    @property
    def phase(self) -> Phase:
        """Where the worker is now."""
        return self._phase

    @property
    def sandbox_id(self) -> str:
        """The id of this worker's sandbox, running or not."""
        return self._id

    @property
    def places(self) -> RunPlaces:
        """Where this worker's files are."""
        return self._places

    @property
    def state(self) -> WorkerState:
        """Facts of the current or last run."""
        return self._state

    def agent(self) -> tuple[Agent, WorkerPlan]:
        """The live sandbox's agent and what runs there.

        Raises:
            WorkerNotRunning: no sandbox, or one that has not booted.
        """
        if self._run is None or self._run.agent is None or self._run.plan is None:
            raise WorkerNotRunning(
                f"worker {self._spec.name!r} is not running ({self._phase.value})",
                hint=f"start it with 'iii worker start {self._spec.name}'",
                details={"name": self._spec.name, "phase": self._phase.value},
            )
        return self._run.agent, self._run.plan

    async def run(self) -> None:
        """Supervise until cancelled; cancelling kills the worker without grace (call `request_stop` first)."""
        while True:
            await self._until(lambda: self._wanted)
            started = trio.current_time()
            failure = await self._run_once()
            if trio.current_time() - started > STEADY_AFTER:
                self._delay = FIRST_DELAY
            if not self._wanted:
                self._report(Phase.STOPPED)
            elif failure is not None:
                await self._back_off(failure)

    def start(self, *, cold: bool = False) -> None:
        """Want the worker running; forgives earlier failures. Does nothing to a live one.

        ``cold``: not from its snapshot.
        """
        self._wanted = self._hurry = True
        self._warm = not cold
        self._delay = FIRST_DELAY
        if not self._phase.alive:
            self._report(Phase.PREPARING)
        self._notify()

    def request_stop(self) -> None:
        """Want the worker stopped; returns at once. Idempotent."""
        self._wanted = False
        if self._run is not None:
            self._run.request_stop()
        elif self._phase.alive:  # between two runs, or before the first: there is nobody to wait for
            self._report(Phase.STOPPED)
        self._notify()

    def replace(self, spec: WorkerSpec) -> None:
        """Use another spec; a live worker is restarted with it, a failed one tried again.

        A live worker is left as it is by a spec with a `WorkerSpec.problem`: that is only told.
        """
        if spec.problem is not None and self._phase.alive:
            self._refused = spec.problem
            self._tell(f"worker {self._spec.name!r} goes on as it is", spec.problem)
            return
        self._refused = None
        self._spec = spec
        if self._wanted or self._phase is Phase.FAILED:
            self.restart()

    def keep(self) -> None:
        """The spec in use is the declared one (again)."""
        self._refused = None

    def restart(self, *, cold: bool = False) -> None:
        """End the current run, if any, and begin another; ``cold`` as for `start`."""
        if self._run is not None:
            self._run.request_stop()
            self._report(Phase.STOPPING)
        self.start(cold=cold)

    async def snapshot(self) -> dict[str, Any]:
        """Save the worker, which must be ready; see `iii_core.workers.saving.SnapshotKeeper.take`."""
        if self._run is None or self._phase is not Phase.RUNNING:
            raise WorkerNotRunning(
                f"worker {self._spec.name!r} is not ready to be saved ({self._phase.value})",
                hint=f"wait until 'iii worker status {self._spec.name}' says that it is ready",
                details={"name": self._spec.name, "phase": self._phase.value},
            )
        return await self.snapshots.take(self._run)

    async def stopped(self) -> None:
        """Wait until nothing of the worker is alive."""
        await self._until(lambda: not self._phase.alive)

    async def ready(self, timeout: float) -> None:
        """Wait until the engine sees the worker.

        Raises:
            IIIError: it failed for good, or `PATIENCE` times since this was called (that error), or ended by itself.
                In the second case it is still tried again.
            StartTimeout: nothing of that within ``timeout`` seconds.
        """
        enough = self.history.restarts + PATIENCE
        with trio.move_on_after(timeout):
            await self._until(lambda: self._phase.settled or self.history.restarts >= enough)
            if self._phase is Phase.RUNNING:
                return
            raise self._why_not_ready()
        raise StartTimeout(
            f"worker {self._spec.name!r} is not ready after {timeout:g} s ({self._phase.value})",
            hint=f"watch it with 'iii worker status {self._spec.name}' and 'iii worker logs {self._spec.name} -f'",
            details={"name": self._spec.name, "phase": self._phase.value, "timeout": timeout},
        )

    def _why_not_ready(self) -> IIIError:
        error, name = self.history.last_error, self._spec.name
        if self._phase.settled and isinstance(error, IIIError):
            return error
        if self._phase.settled:
            return WorkerNotRunning(
                f"worker {name!r} ended before it registered ({self.history.last_exit or 'stopped'})",
                hint=f"see 'iii worker logs {name}'",
            )
        if isinstance(error, IIIError):
            told: IIIError = error.copy()
        else:
            told = WorkerNotRunning(f"worker {name!r} failed: {error!r}")
        again = f"it has failed {PATIENCE} times in a row and is tried again: see 'iii worker logs {name} --previous'"
        told.hint = f"{told.hint}; {again}" if told.hint and "iii worker logs" not in told.hint else again
        return told

    def as_json(self) -> dict[str, Any]:
        """The supervised part of ``worker.status``."""
        error = self.history.last_error
        facts = self._state.as_json()
        if self._refused is not None:
            facts["notes"].append(f"its settings in config.yaml are not in use: {_in_short(self._refused)}")
        return {
            "name": self._spec.name,
            "status": self._phase.value,
            **facts,
            "pid": self._state.pid if self._run is not None else None,
            "restarts": self.history.restarts,
            "last_exit": self.history.last_exit,
            "error": {"code": error.code, "message": error.message, "hint": error.hint}
            if isinstance(error, IIIError)
            else None,
        }

    async def _run_once(self) -> BaseException | None:
        """One run. Returns why it failed, or None where it was stopped or did its work."""
        run = self._run = WorkerRun(self._spec, self._id, self._services, self._places, self._report, warm=self._warm)
        self._state = run.state
        try:
            status = await run.execute()
        except Exception as error:  # whatever ends a run is this worker's trouble, not the engine's
            if run.stop_requested:
                return None
            return leading_error(error)
        finally:
            self._run = None
        return None if run.stop_requested else self._judge(status)

    def _judge(self, status: ExitStatus | None) -> BaseException | None:
        if status is None:
            return None
        self.history.last_exit = str(status)
        if status.as_shell() == 0:
            self._wanted = False
            self.history.last_error = None
            return None
        return WorkerNotRunning(
            f"worker {self._spec.name!r} ended with {status}", hint=f"see 'iii worker logs {self._spec.name}'"
        )

    async def _back_off(self, failure: BaseException) -> None:
        self.history.last_error = failure
        self._warm = False  # whoever fails goes on with the files that it has, and fails no second time the same way
        if isinstance(failure, SandboxDied):
            self.history.last_exit = f"its sandbox ended by itself ({failure.details['exit']})"
        if is_hopeless(failure):
            self._wanted = False
            self._report(Phase.FAILED)
            self._tell(f"worker {self._spec.name!r} failed", failure)
            return
        self._tell(f"worker {self._spec.name!r} is started again", failure)
        self.history.restarts += 1
        self._hurry = False
        self._report(Phase.RESTARTING)
        with trio.move_on_after(self._delay):
            await self._until(lambda: not self._wanted or self._hurry)
        self._delay = min(self._delay * 2, LONGEST_DELAY)
        if not self._wanted:
            self._report(Phase.STOPPED)

    def _report(self, phase: Phase) -> None:
        if phase is Phase.RUNNING:
            self.history.last_error = self._told = None
        if phase is not self._phase:
            self._phase = phase
            self._notify()

    def _tell(self, what: str, why: BaseException) -> None:
        """Say it where the engine runs, once until it is another reason or the worker has been ready."""
        text = f"{what}: {_in_short(why)}"
        if text != self._told:
            self._told = text
            hint = why.hint if isinstance(why, IIIError) else None
            _log.warning("%s%s", text, f" (hint: {hint})" if hint else "")

    def _notify(self) -> None:
        self._changed.unpark_all()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.park()


def _in_short(error: BaseException) -> str:
    return f"[{error.code}] {error.message}" if isinstance(error, IIIError) else repr(error)
