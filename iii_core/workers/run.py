"""One run of one managed worker: image → sandbox → agent → process → exit; and being saved meanwhile."""

from __future__ import annotations

from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from iii_core.errors import IIIError, SandboxHostDied, SnapshotUnusable, leading_error
from iii_core.link.nursery import open_service_nursery
from iii_core.sandbox.agent import AgentTimeouts, ProcessSpec, open_agent
from iii_core.sandbox.port import SandboxSpec
from iii_core.workers.check import check_sandbox
from iii_core.workers.live import POWER_OFF_GRACE, open_live
from iii_core.workers.logs import RunLog, Stream
from iii_core.workers.plan import plan_worker
from iii_core.workers.ports import open_ports
from iii_core.workers.progress import ProgressNotes
from iii_core.workers.saving import KEY, SaveOrders
from iii_core.workers.snapshots import SnapshotStore, what_it_fits
from iii_core.workers.state import Phase, WorkerState
from iii_core.workers.validity import check_spec

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from iii_core.images.port import Image
    from iii_core.sandbox.agent import Agent, AgentProcess, ExitStatus
    from iii_core.workers.live import LiveSandbox
    from iii_core.workers.plan import WorkerPlan
    from iii_core.workers.ports import Ports
    from iii_core.workers.services import OpenBackend, WorkerServices
    from iii_core.workers.spec import WorkerSpec

STOP_GRACE: Final = 10.0  # spec worker-cli §0.3
AGENT_TIMEOUTS: Final = AgentTimeouts(silence=20.0)
"""An agent that has not answered for so long is frozen: its sandbox is ended and the worker started anew."""
WARM_READY_TIMEOUT: Final = 30.0
"""Seconds; who was connected when it was saved, and is not by then, did not wake up well."""
CONSOLE_LINES: Final = 10
_STREAMS: Final = {1: Stream.STDOUT, 2: Stream.STDERR}
"""By the channel of the agent protocol."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlaces:
    """Where one worker's files are: its log folder, its writable layers, its console, its snapshot."""

    logs: Path
    writable: Path
    console: Path
    snapshots: Path


class WorkerRun:
    """One run. `execute` does all of it; the rest may be used from other tasks while it goes on.

    ``agent`` is there from the moment the sandbox answers until it ends, but for the moment in which it is saved: exec
    sessions go through it. ``warm``: a snapshot may be used, where there is one that fits.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        sandbox_id: str,
        services: WorkerServices,
        places: RunPlaces,
        report: Callable[[Phase], None],
        *,
        warm: bool = False,
    ) -> None:
        self.spec = spec
        self._id = sandbox_id
        self._services = services
        self._places = places
        self._report = report
        self._warm = warm
        self._stop = trio.Event()
        self._scope = trio.CancelScope()
        self._process_runs = False
        self._registered = trio.Event()
        self._next_link: trio.SocketStream | None = None
        self.saves = SaveOrders()
        self.state = WorkerState()
        self.agent: Agent | None = None
        self.plan: WorkerPlan | None = None
        self.fits: dict[str, str] = {}

    @property
    def stop_requested(self) -> bool:
        """Whether this run is to end because someone asked."""
        return self._stop.is_set()

    def request_stop(self) -> None:
        """End this run in an orderly way: SIGTERM, a grace period, SIGKILL. Idempotent."""
        self._stop.set()
        if self.agent is None and not self._process_runs:
            self._scope.cancel()  # nothing runs inside yet that could be asked

    async def execute(self) -> ExitStatus | None:
        """Run until the worker's process ends; None where it was stopped before there was one.

        Raises whatever keeps the worker from running, as `IIIError` (possibly in a group). Cancelling kills.
        """
        with closing(RunLog(self._places.logs)) as log, self._scope:
            try:
                return await self._warm_or_cold(log)
            except Exception as error:
                if not self.stop_requested:
                    _note_failure(log, leading_error(error))
                raise
            finally:
                self.saves.end(self.spec.name)
        return None

    async def _warm_or_cold(self, log: RunLog) -> ExitStatus | None:
        """A snapshot that does not wake up is no failure of the worker's: it is then started afresh."""
        try:
            status = await self._whole_run(log, warm=self._warm)
        except Exception as error:
            reason = leading_error(error)
            if not self._woke_badly or isinstance(reason, SandboxHostDied):
                raise
            _note_failure(log, reason)
        else:
            if status.as_shell() == 0 or not self._woke_badly:
                return status
        log.note("it did not wake up from its snapshot, and is started afresh")
        self._process_runs = False
        return await self._whole_run(log, warm=False)

    @property
    def _woke_badly(self) -> bool:
        return self.state.warm and not self._registered.is_set() and not self.stop_requested

    async def _whole_run(self, log: RunLog, *, warm: bool) -> ExitStatus:
        self._report(Phase.PREPARING)
        image = await self._image(log)
        await check_sandbox(self.spec, self._services.sandboxes)
        backend = await self._services.sandboxes.backend(self.spec.backend)
        self.plan = plan_worker(
            self.spec, image, engine_port=self._services.engine.port, isolation=backend.record.isolation
        )
        self.fits = what_it_fits(self.spec, image, backend.record.name, self.plan)
        self.state.describe(image=image, backend=backend, plan=self.plan)
        saved = self._saved(log) if warm else None
        self._report(Phase.BOOTING)
        spec = self._sandbox_spec(image, self.plan)
        async with (
            open_ports(self.spec.ports) as ports,
            open_live(backend.driver, spec, self.spec.name, saved=saved, note=log.note) as sandbox,
        ):
            await self._describe(sandbox, image, backend, log)
            return await self._live(sandbox, ports, log)

    async def _image(self, log: RunLog) -> Image:
        if self.spec.problem is not None:
            raise self.spec.problem
        check_spec(self.spec, self._services.engine.port)
        progress = ProgressNotes(log.note)
        try:
            return await self._services.images.fetch(self.spec.source, refresh=False, progress=progress)
        except IIIError as error:
            self.spec.tell_as_written(error)
            raise

    def _saved(self, log: RunLog) -> Path | None:
        try:
            return SnapshotStore(self._places.snapshots).find(self.fits)
        except SnapshotUnusable as error:
            log.note(f"not started from its snapshot, but afresh: [{error.code}] {error.message}")
            return None

    def _sandbox_spec(self, image: Image, plan: WorkerPlan) -> SandboxSpec:
        return SandboxSpec(
            id=self._id,
            root=image.root,
            writable_dir=self._places.writable / image.digest.removeprefix("sha256:")[:16],
            console=self._places.console,
            hostname=_hostname(self.spec.name),
            limits=plan.limits,
            egress=self.spec.egress,
            mounts=self.spec.mounts,
        )

    async def _describe(self, sandbox: LiveSandbox, image: Image, backend: OpenBackend, log: RunLog) -> None:
        self.state.warm = sandbox.restored
        if sandbox.restored:
            log.note("started from its snapshot; its files are of that time")
        self.state.sandbox = await sandbox.state()
        if self.state.sandbox.single_user and self.plan is not None:
            self.plan = self.plan.as_single_user()
            self.state.describe(image=image, backend=backend, plan=self.plan)

    async def _live(self, sandbox: LiveSandbox, ports: Ports, log: RunLog) -> ExitStatus:
        """Over one link after the other, until the process has ended."""
        link, again = await sandbox.link(), sandbox.restored
        while True:
            async with self._agent(link, resync=again) as agent:
                status = await self._serve(sandbox, agent, ports, log, adopt=again)
            if status is not None:
                log.note(f"worker exited with {status}")
                return status
            assert self._next_link is not None
            link, self._next_link, again = self._next_link, None, True

    @asynccontextmanager
    async def _agent(self, link: trio.SocketStream, *, resync: bool) -> AsyncGenerator[Agent]:
        engine = self._services.engine
        async with open_agent(
            link,
            tunnel_ports=engine.tunnel_ports,
            serve_tunnel=lambda tunnel: engine.serve_tunnel(tunnel, self._id),
            timeouts=AGENT_TIMEOUTS,
            hostname=_hostname(self.spec.name),  # a machine has it from its agent alone
            resync=resync,
        ) as agent:
            try:
                yield agent
            finally:
                self.agent = None
                if self._next_link is None:
                    with trio.move_on_after(POWER_OFF_GRACE, shield=True):
                        await agent.power_off(POWER_OFF_GRACE)

    async def _serve(
        self, sandbox: LiveSandbox, agent: Agent, ports: Ports, log: RunLog, *, adopt: bool
    ) -> ExitStatus | None:
        """Until the process has ended, or the sandbox has another link (`_next_link`; then it is kept, for None)."""
        while True:
            self.agent = agent
            process = await (agent.adopt(KEY) if adopt else self._spawn(agent))
            self._process_runs = True
            self.state.process_pid = process.pid
            self._report(Phase.STARTING)
            self.saves.finish()
            status = await self._attend(agent, process, ports, log, woken=adopt)
            if status is not None:
                return status
            self.agent = None
            await self.saves.carry_out(sandbox.save, self._stop)
            self._next_link = await sandbox.next_link()
            if self._next_link is not None:
                return None
            agent.let_in_connections()
            adopt = True

    async def _spawn(self, agent: Agent) -> AgentProcess:
        plan = self.plan
        assert plan is not None
        return await agent.spawn(
            ProcessSpec(
                argv=plan.argv,
                env=plan.env,
                cwd=plan.cwd,
                uid=plan.uid,
                gid=plan.gid,
                groups=plan.groups,
                linger=STOP_GRACE,
                stdin=False,
            )
        )

    async def _attend(
        self, agent: Agent, process: AgentProcess, ports: Ports, log: RunLog, *, woken: bool
    ) -> ExitStatus | None:
        """Until the process has ended (how), or was released in order to be saved (None)."""
        async with open_service_nursery() as nursery:  # so that a broken link comes out as it is
            nursery.start_soon(self._services.engine.watch_sandbox, self._id, self._registration)
            nursery.start_soon(self._stop_on_request, process)
            nursery.start_soon(ports.serve, agent, log.note)
            nursery.start_soon(self.saves.prepare, agent, process, self._report)
            if woken and not self._registered.is_set():
                nursery.start_soon(self._expect_registration)
            await _pump(process, log)
            return None if process.released else await process.wait()

    def _registration(self, connected: bool) -> None:
        """The worker is ready when the engine sees it."""
        if connected:
            self._registered.set()
        if not self.stop_requested and not self.saves.under_way:
            self._report(Phase.RUNNING if connected else Phase.STARTING)

    async def _expect_registration(self) -> None:
        with trio.move_on_after(WARM_READY_TIMEOUT):
            await self._registered.wait()
            return
        raise SnapshotUnusable(
            f"worker {self.spec.name!r} did not connect within {WARM_READY_TIMEOUT:g} s after it was restored",
            hint=f"save it again with 'iii worker snapshot {self.spec.name}'",
        )

    async def _stop_on_request(self, process: AgentProcess) -> None:
        await self._stop.wait()
        self._report(Phase.STOPPING)
        assert self.plan is not None
        await process.signal(self.plan.stop_signal)
        await trio.sleep(STOP_GRACE)  # the process's end cancels this wait
        await process.kill()


async def _pump(process: AgentProcess, log: RunLog) -> None:
    while (output := await process.receive_output()) is not None:
        log.write(_STREAMS[output[0]], output[1])


def _note_failure(log: RunLog, error: BaseException) -> None:
    """Leave the reason of a failed run where people look for it; ``iii worker logs`` makes it safe to show."""
    log.note(f"[{error.code}] {error.message}" if isinstance(error, IIIError) else repr(error))
    console: object = error.details.get("console") if isinstance(error, IIIError) else None
    if isinstance(console, str):
        for line in console.splitlines()[-CONSOLE_LINES:]:
            log.note(f"console: {line}")


def _hostname(worker: str) -> str:
    return worker.replace("_", "-").replace(".", "-")[:63]
