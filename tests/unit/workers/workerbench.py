"""A supervisor's world: the memory backend's sandboxes, an engine that sees whom it is told to see, one image."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from iii_core.images.port import Image, ImageConfig, ProgressSink
from iii_core.records import OpenContext
from iii_core.sandbox.host import SandboxHost, open_inline_host
from iii_core.sandbox.port import RootImage, SandboxNeeds, check_supported
from iii_core.testing.memory_backend import MemoryBackend, MemoryProcess, Program
from iii_core.workers.logs import LOG_FILE, read_log
from iii_core.workers.run import RunPlaces
from iii_core.workers.services import OpenBackend, WorkerServices
from iii_core.workers.spec import WorkerSpec
from iii_core.workers.state import Phase
from iii_core.workers.supervisor import Supervisor

SANDBOX = "w-1"


class OneImage:
    """Images: one for every source, unless ``error`` is set; ``delay`` seconds away."""

    def __init__(self) -> None:
        self.delay = 0.0
        self.error: Exception | None = None
        self.digest = f"sha256:{0:064}"

    async def fetch(self, source: str, *, refresh: bool, progress: ProgressSink) -> Image:
        await trio.sleep(self.delay)
        if self.error is not None:
            raise self.error
        return Image(
            reference=source,
            digest=self.digest,
            name="w",
            config=ImageConfig(entrypoint=(source,)),
            root=RootImage(path=Path("/none"), format="squashfs", digest=self.digest),
            size=0,
        )


class SeeingEngine:
    """The engine's side: ``see`` says whether a worker of the sandbox is connected."""

    port = 49134
    tunnel_ports = (49134,)

    def __init__(self) -> None:
        self.connected = False
        self._changed = trio.lowlevel.ParkingLot()

    def see(self, connected: bool) -> None:
        self.connected = connected
        self._changed.unpark_all()

    async def serve_tunnel(self, stream: trio.abc.Stream, sandbox_id: str) -> None:
        await stream.aclose()

    async def watch_sandbox(self, sandbox_id: str, report: Callable[[bool], None]) -> None:
        while True:
            report(self.connected)
            await self._changed.park()


@dataclass
class Sandboxes:
    """The memory backend under every name."""

    backend_: MemoryBackend
    host: SandboxHost

    async def backend(self, name: str) -> OpenBackend:
        return OpenBackend(self.backend_.record(), await self.host.driver("memory"))

    async def check(self, name: str, needs: SandboxNeeds) -> None:
        await trio.lowlevel.checkpoint()
        check_supported(needs, self.backend_.record().capabilities, name)


@dataclass
class Bench:
    """What a test works with. ``starts`` are the times at which the worker's program began."""

    folder: Path
    backend: MemoryBackend
    images: OneImage
    engine: SeeingEngine
    supervisor: Supervisor
    nursery: trio.Nursery
    services: WorkerServices
    starts: list[float] = field(default_factory=list[float])
    started: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    async def until(self, phase: Phase) -> None:
        """Wait until the supervisor is in a phase."""
        with trio.fail_after(3600):
            await self.supervisor._until(lambda: self.supervisor.phase is phase)

    async def began(self, count: int) -> None:
        """Wait until the program was started so many times."""
        with trio.fail_after(3600):
            while len(self.starts) < count:
                await self.started.park()

    def log(self, suffix: str = "") -> str:
        """What the log says, each line after its stream: ``iii: worker exited``."""
        lines = read_log(self.folder / "logs" / f"{LOG_FILE}{suffix}")
        return "".join(f"{line.stream.value}: {line.text}\n" for line in lines)


def spec_of(source: str = "worker", **changes: object) -> WorkerSpec:
    return WorkerSpec(**{"name": "w", "source": source, **changes})  # type: ignore[arg-type]


@asynccontextmanager
async def open_bench(
    folder: Path, program: Program, *, spec: WorkerSpec | None = None, run: bool = True
) -> AsyncGenerator[Bench]:
    """Supervise a worker whose program is ``program``; the other programs are the memory backend's."""
    context = OpenContext(state_dir=folder, runtime_dir=folder, home=folder, environ={})
    starts: list[float] = []
    started = trio.lowlevel.ParkingLot()

    async def worker(process: MemoryProcess) -> int | None:
        starts.append(trio.current_time())
        started.unpark_all()
        return await program(process)

    backend = MemoryBackend({"worker": worker})
    async with open_inline_host({"memory": backend.record()}, context) as host, trio.open_nursery() as nursery:
        images, engine = OneImage(), SeeingEngine()
        services = WorkerServices(images=images, sandboxes=Sandboxes(backend, host), engine=engine)
        places = RunPlaces(
            logs=folder / "logs",
            writable=folder / "writable",
            console=folder / "logs" / "console.log",
            snapshots=folder / "snapshots",
        )
        supervisor = Supervisor(spec or spec_of(), SANDBOX, services, places)
        bench = Bench(folder, backend, images, engine, supervisor, nursery, services, starts, started)
        if run:
            nursery.start_soon(supervisor.run)
        yield bench
        nursery.cancel_scope.cancel()


async def run_on(process: MemoryProcess) -> int:
    """Run until it is signalled."""
    await trio.sleep_forever()
    return 0


def ends_with(code: int, after: float = 0) -> Program:
    """A program that ends with ``code`` after so many seconds."""

    async def program(process: MemoryProcess) -> int:
        await trio.sleep(after)
        return code

    return program
