"""One engine and one process of every SDK, shared by the tests of this folder; and the table of what passed."""

from __future__ import annotations

import shutil
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from iii_core.engine import Engine, EngineConfig, ListenerConfig, WorkerInfo, open_engine
from iii_core.host import PluginHost
from iiitools.sdks import SDKS, Sdk, install
from iiitools.waiting import PATIENCE

from .driver import Client, open_client
from .recorder import Recorder


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Recorder())


@dataclass(frozen=True)
class Hub:
    """An engine that listens."""

    engine: Engine
    home: Path

    @property
    def port(self) -> int:
        return self.engine.addresses[0].port

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    async def offer(self, client: Client, function_id: str, behaviour: str, **options: object) -> None:
        """Have a client register a function, and wait until the engine knows it."""
        await client.do("function", function_id=function_id, behaviour=behaviour, **options)
        await self.wait_for_function(client.name, function_id)

    async def wait_for_function(self, name: str, function_id: str) -> WorkerInfo:
        """The worker of that name that has the function, as soon as there is one."""
        with trio.fail_after(PATIENCE):
            return await self.engine.wait_for_worker(
                lambda worker: worker.name == name and function_id in worker.functions
            )

    async def wait_until_gone(self, worker_id: str) -> None:
        """Wait until a worker is not connected any more."""
        with trio.fail_after(PATIENCE):
            async for workers in self.engine.worker_changes():
                if all(worker.id != worker_id for worker in workers):
                    return

    def worker_ids(self, name: str) -> list[str]:
        return [worker.id for worker in self.engine.workers if worker.name == name]

    def drop(self, name: str) -> None:
        """Cut the connection of a worker, without a close frame."""
        for worker_id in self.worker_ids(name):
            self.engine.router.workers[worker_id].drop("a test wants it")


@asynccontextmanager
async def open_hub(home: Path, *, port: int = 0) -> AsyncGenerator[Hub, None]:
    config = EngineConfig(listeners=(ListenerConfig(port=port),))
    async with open_engine(config, plugins=PluginHost.create()) as engine:
        yield Hub(engine, home)


@asynccontextmanager
async def open_clients(
    sdks: Sequence[Sdk], url: str, home: Path, prefix: str = "", *, env: Mapping[str, str] | None = None
) -> AsyncGenerator[dict[Sdk, Client], None]:
    """A process of each SDK, started side by side."""
    clients: dict[Sdk, Client] = {}
    async with AsyncExitStack() as stack:

        async def start(sdk: Sdk, *, task_status: trio.TaskStatus[None]) -> None:
            async with open_client(sdk, url, home, name=prefix + sdk.label, env=env) as client:
                clients[sdk] = client
                task_status.started()
                await trio.sleep_forever()

        nursery = await stack.enter_async_context(trio.open_nursery())
        async with trio.open_nursery() as starting:
            for sdk in sdks:
                starting.start_soon(nursery.start, start, sdk)
        yield {sdk: clients[sdk] for sdk in sdks}
        nursery.cancel_scope.cancel()


@pytest.fixture(scope="package")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where SDK processes may write: their ``HOME`` and working folder."""
    if shutil.which("node") is None:
        pytest.skip("needs Node.js")
    install()
    return tmp_path_factory.mktemp("sdk-home")


@pytest.fixture(scope="package")
async def hub(anyio_backend: str, home: Path) -> AsyncGenerator[Hub, None]:
    """The engine that is never stopped."""
    async with open_hub(home) as hub:
        yield hub


@pytest.fixture(scope="package")
async def fleet(hub: Hub) -> AsyncGenerator[dict[Sdk, Client], None]:
    """A process of every SDK, connected to ``hub`` under its label."""
    async with open_clients(SDKS, hub.url, hub.home) as clients:
        yield clients


@dataclass(frozen=True)
class Idlers:
    """Workers that nobody has called since a time of trio's clock."""

    since: float
    worker_ids: Mapping[Sdk, str]


@pytest.fixture(scope="package")
async def idlers(hub: Hub) -> AsyncGenerator[Idlers, None]:
    """A worker of every SDK, named ``idle-<label>``, that has a function and is left alone."""
    async with open_clients(SDKS, hub.url, hub.home, "idle-") as clients:
        for sdk, client in clients.items():
            await hub.offer(client, f"idle::{sdk.label}", "who")
        yield Idlers(trio.current_time(), {sdk: hub.worker_ids(f"idle-{sdk.label}")[0] for sdk in SDKS})


@pytest.fixture(scope="package", autouse=True)
def start_idlers_first(request: pytest.FixtureRequest) -> None:
    """Have the time of the other tests count for those that wait."""
    if any("idlers" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("idlers")


@pytest.fixture(params=SDKS, ids=lambda sdk: sdk.label)
def sdk(request: pytest.FixtureRequest) -> Sdk:
    return request.param


@pytest.fixture
def client(fleet: dict[Sdk, Client], sdk: Sdk) -> Client:
    """The process of the SDK under test."""
    return fleet[sdk]
