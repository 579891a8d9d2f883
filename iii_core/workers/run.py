"""One run of one managed worker: image → sandbox → agent → process → exit."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from iii_core.errors import ConfigError, IIIError, LinkClosed, LinkSilent, SandboxDied, leading_error
from iii_core.link.nursery import open_service_nursery
from iii_core.sandbox.agent import AgentTimeouts, ProcessSpec, open_agent
from iii_core.sandbox.port import SandboxSpec
from iii_core.workers.check import check_sandbox
from iii_core.workers.logs import RunLog, Stream
from iii_core.workers.plan import plan_worker
from iii_core.workers.ports import open_ports
from iii_core.workers.progress import ProgressNotes
from iii_core.workers.state import Phase, WorkerState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from iii_core.images.port import Image
    from iii_core.sandbox.agent import Agent, AgentProcess, ExitStatus
    from iii_core.sandbox.port import SandboxDriver
    from iii_core.workers.plan import WorkerPlan
    from iii_core.workers.ports import Ports
    from iii_core.workers.services import OpenBackend, WorkerServices
    from iii_core.workers.spec import WorkerSpec

STOP_GRACE: Final = 10.0  # spec worker-cli §0.3
POWER_OFF_GRACE: Final = 2.0
CLEANUP_LIMIT: Final = 15.0
AGENT_TIMEOUTS: Final = AgentTimeouts(silence=20.0)
"""An agent that has not answered for so long is frozen: its sandbox is ended and the worker started anew."""
CONSOLE_TAIL: Final = 4096
CONSOLE_LINES: Final = 10
_STREAMS: Final = {1: Stream.STDOUT, 2: Stream.STDERR}
"""By the channel of the agent protocol."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlaces:
    """Where one worker's files are: its log folder, its writable layers, its console."""

    logs: Path
    writable: Path
    console: Path


class WorkerRun:
    """One run. `execute` does all of it; the rest may be used from other tasks while it goes on.

    ``agent`` is there from the moment the sandbox answers until it ends: exec sessions go through it.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        sandbox_id: str,
        services: WorkerServices,
        places: RunPlaces,
        report: Callable[[Phase], None],
    ) -> None:
        self._spec = spec
        self._id = sandbox_id
        self._services = services
        self._places = places
        self._report = report
        self._stop = trio.Event()
        self._scope = trio.CancelScope()
        self.state = WorkerState()
        self.agent: Agent | None = None
        self.plan: WorkerPlan | None = None

    @property
    def stop_requested(self) -> bool:
        """Whether this run is to end because someone asked."""
        return self._stop.is_set()

    def request_stop(self) -> None:
        """End this run in an orderly way: SIGTERM, a grace period, SIGKILL. Idempotent."""
        self._stop.set()
        if self.agent is None:
            self._scope.cancel()  # nothing runs inside yet that could be asked

    async def execute(self) -> ExitStatus | None:
        """Run until the worker's process ends; None where it was stopped before there was one.

        Raises whatever keeps the worker from running, as `IIIError` (possibly in a group). Cancelling kills.
        """
        with closing(RunLog(self._places.logs)) as log, self._scope:
            try:
                return await self._whole_run(log)
            except Exception as error:
                if not self.stop_requested:
                    _note_failure(log, leading_error(error))
                raise
        return None

    async def _whole_run(self, log: RunLog) -> ExitStatus:
        self._report(Phase.PREPARING)
        image = await self._image(log)
        await check_sandbox(self._spec, self._services.sandboxes)
        backend = await self._services.sandboxes.backend(self._spec.backend)
        self.plan = plan_worker(
            self._spec, image, engine_port=self._services.engine.port, isolation=backend.record.isolation
        )
        self.state.describe(image=image, backend=backend, plan=self.plan)
        self._report(Phase.BOOTING)
        async with open_ports(self._spec.ports) as ports, self._sandbox(image, backend, log) as agent:
            if self.state.sandbox is not None and self.state.sandbox.single_user:
                self.plan = self.plan.as_single_user()
                self.state.describe(image=image, backend=backend, plan=self.plan)
            return await self._process(agent, self.plan, ports, log)

    async def _image(self, log: RunLog) -> Image:
        if self._spec.problem is not None:
            raise self._spec.problem
        _require_sources(self._spec)
        progress = ProgressNotes(log.note)
        return await self._services.images.fetch(self._spec.source, refresh=False, progress=progress)

    @asynccontextmanager
    async def _sandbox(self, image: Image, backend: OpenBackend, log: RunLog) -> AsyncGenerator[Agent]:
        driver = backend.driver
        assert self.plan is not None
        spec = SandboxSpec(
            id=self._id,
            root=image.root,
            writable_dir=self._places.writable / image.digest.removeprefix("sha256:")[:16],
            console=self._places.console,
            hostname=_hostname(self._spec.name),
            limits=self.plan.limits,
            egress=self._spec.egress,
            mounts=self._spec.mounts,
        )
        console_start = _size(self._places.console)
        await driver.create(spec)
        try:
            await driver.start(self._id)
            self.state.sandbox = await driver.state(self._id)
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(await driver.link(self._id)))
            engine = self._services.engine
            async with open_agent(
                stream,
                tunnel_ports=engine.tunnel_ports,
                serve_tunnel=lambda tunnel: engine.serve_tunnel(tunnel, self._id),
                timeouts=AGENT_TIMEOUTS,
                hostname=_hostname(self._spec.name),  # a machine has it from its agent alone
            ) as agent:
                self.agent = agent
                try:
                    yield agent
                finally:
                    self.agent = None
                    with trio.move_on_after(POWER_OFF_GRACE, shield=True):
                        await agent.power_off(POWER_OFF_GRACE)
        except LinkClosed as error:
            raise await self._death(driver, console_start, error) from error
        finally:
            with trio.move_on_after(CLEANUP_LIMIT, shield=True) as scope:
                await driver.stop(self._id, grace=POWER_OFF_GRACE)
                await driver.destroy(self._id, keep_writable=True)
            if scope.cancelled_caught:
                log.note("the sandbox could not be taken down in time")

    async def _death(self, driver: SandboxDriver, console_start: int, why: LinkClosed) -> SandboxDied:
        """Why the link broke, with what the sandbox last said.

        The link may end a moment before the sandbox does; one that stays without its link is of no use and is killed.
        """
        await driver.stop(self._id, grace=POWER_OFF_GRACE)
        ended = (await driver.state(self._id)).exit or "unknown"
        silent = isinstance(why, LinkSilent)
        return SandboxDied(
            f"the sandbox of worker {self._spec.name!r} "
            + ("did not answer any more, and was ended" if silent else f"ended by itself ({ended})"),
            hint=f"see 'iii worker logs {self._spec.name} --previous'",
            details={
                "exit": "frozen" if silent else ended,
                "console": _tail_since(self._places.console, console_start),
            },
        )

    async def _process(self, agent: Agent, plan: WorkerPlan, ports: Ports, log: RunLog) -> ExitStatus:
        process = await agent.spawn(
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
        self.state.process_pid = process.pid
        self._report(Phase.STARTING)
        async with open_service_nursery() as nursery:  # so that a broken link comes out as it is
            nursery.start_soon(self._services.engine.watch_sandbox, self._id, self._registration)
            nursery.start_soon(self._stop_on_request, process)
            nursery.start_soon(ports.serve, agent, log.note)
            await _pump(process, log)
            status = await process.wait()
        log.note(f"worker exited with {status}")
        return status

    def _registration(self, connected: bool) -> None:
        """The worker is ready when the engine sees it."""
        if not self.stop_requested:
            self._report(Phase.RUNNING if connected else Phase.STARTING)

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


def _require_sources(spec: WorkerSpec) -> None:
    for mount in spec.mounts:
        if not mount.source.is_dir():
            raise ConfigError(
                f"worker {spec.name!r}: {mount.source} is to be mounted, and is no folder",
                hint="make it, or correct 'mounts' in the worker's sandbox settings",
            )


def _note_failure(log: RunLog, error: BaseException) -> None:
    """Leave the reason of a failed run where people look for it; ``iii worker logs`` makes it safe to show."""
    log.note(f"[{error.code}] {error.message}" if isinstance(error, IIIError) else repr(error))
    console: object = error.details.get("console") if isinstance(error, IIIError) else None
    if isinstance(console, str):
        for line in console.splitlines()[-CONSOLE_LINES:]:
            log.note(f"console: {line}")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _tail_since(path: Path, start: int) -> str:
    """What was written after offset ``start``, at most its last `CONSOLE_TAIL` bytes.

    A backend may cut the beginning off a file that grows too large; then all of it is of this run.
    """
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(start if start <= end else 0, end - CONSOLE_TAIL))
            return file.read(CONSOLE_TAIL).decode(errors="replace")
    except OSError:
        return ""


def _hostname(worker: str) -> str:
    return worker.replace("_", "-").replace(".", "-")[:63]
