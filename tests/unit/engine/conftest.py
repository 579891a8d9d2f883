"""An engine on a memory network, and workers that speak the wire protocol by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace

import pytest

from iii_core.engine import Engine, EngineConfig, ListenerConfig, open_engine
from iii_core.protocol.limits import EngineLimits
from iii_core.records import Record
from iii_core.testing.memory_transport import MemoryNetwork, MemoryPlugins, MemoryTransport
from iii_core.testing.wire import WireWorker

LISTENER = ListenerConfig(port=0, transport="memory")


@dataclass(frozen=True)
class Bench:
    """A running engine and a way to its listener."""

    engine: Engine
    transport: MemoryTransport
    network: MemoryNetwork

    @property
    def url(self) -> str:
        return f"memory://127.0.0.1:{self.engine.addresses[0].port}/"

    async def worker(self, **headers: str) -> WireWorker:
        return await WireWorker.connect(self.transport, self.url, **headers)


OpenBench = Callable[..., AbstractAsyncContextManager[Bench]]


@asynccontextmanager
async def _open(
    *records: Record, limits: EngineLimits | None = None, config: EngineConfig | None = None, buffer: int = 64 * 1024
) -> AsyncIterator[Bench]:
    network = MemoryNetwork(buffer_bytes=buffer)
    config = config or EngineConfig(listeners=(LISTENER,))
    if limits is not None:
        config = replace(config, limits=limits)
    async with (
        open_engine(config, plugins=MemoryPlugins(network, *records)) as engine,
        network.open_transport() as transport,
    ):
        yield Bench(engine, transport, network)


@pytest.fixture
def open_bench() -> OpenBench:
    return _open


@pytest.fixture
async def bench(anyio_backend: str) -> AsyncIterator[Bench]:
    async with _open() as opened:
        yield opened


@pytest.fixture
def connect(bench: Bench) -> Callable[[], Awaitable[WireWorker]]:
    return bench.worker
