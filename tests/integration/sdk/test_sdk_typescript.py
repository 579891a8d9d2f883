"""The TypeScript of the seeds, run by ``tsx`` as a plain process against the engine."""

from __future__ import annotations

import re
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio

from iiitools.sdks import SDKS, Sdk
from iiitools.waiting import PATIENCE

from .conftest import Hub
from .driver import CLIENTS, Client, end, open_client, open_process, prepare

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

OLD_NODE = Sdk("node", "0.11.6")  # the release that the seeds' names (Logger, IIIInvocationError) are of


@asynccontextmanager
async def open_program(hub: Hub, script: str) -> AsyncGenerator[tuple[trio.Process, Output], None]:
    tsx = str(OLD_NODE.folder / "node_modules" / ".bin" / "tsx")
    path = str(prepare(OLD_NODE, CLIENTS / script))
    async with (
        open_process([tsx, path], hub.url, hub.home, env=OLD_NODE.environment) as process,
        trio.open_nursery() as nursery,
    ):
        output = Output()
        nursery.start_soon(output.read, process)
        yield process, output
        nursery.cancel_scope.cancel()


class Output:
    """What a program has printed."""

    def __init__(self) -> None:
        self.text = ""
        self._more = trio.Event()

    async def read(self, process: trio.Process) -> None:
        assert process.stdout is not None
        async for data in process.stdout:
            self.text += data.decode(errors="replace")
            self._more.set()
            self._more = trio.Event()

    async def wait_for(self, pattern: str) -> str:
        with trio.move_on_after(PATIENCE):
            while (found := re.search(pattern, self.text)) is None:
                await self._more.wait()
            return found.group()
        raise AssertionError(f"no {pattern!r} in:\n{self.text}")


@pytest.mark.parametrize("sdk", [OLD_NODE], ids=lambda sdk: sdk.label)
async def test_the_sample_worker_of_an_image(hub: Hub, fleet: dict[Sdk, Client], sdk: Sdk) -> None:
    async with open_program(hub, "hello.ts") as (_, output):
        with trio.fail_after(PATIENCE):
            await hub.engine.wait_for_worker(lambda worker: "my-worker::hello" in worker.functions)
        for client in fleet.values():
            assert await client.call("my-worker::hello", {"from": client.name}) == {"message": "Hello!"}
        await output.wait_for("Hello from my OCI worker!")


@pytest.mark.parametrize("sdk", [OLD_NODE], ids=lambda sdk: sdk.label)
async def test_the_samples_of_the_lifecycle_page(hub: Hub, sdk: Sdk) -> None:
    async with open_client(SDKS[0], hub.url, hub.home, name="math") as math:
        await hub.offer(math, "math::add", "slow", seconds=60)
        async with open_program(hub, "lifecycle.ts") as (process, output):
            await output.wait_for("lists true,true,true,true")
            await math.event("started", function_id="math::add")
            async with open_client(SDKS[0], hub.url, hub.home, name="newcomer") as newcomer:
                await hub.offer(newcomer, "newcomer::echo", "echo")
                await output.wait_for(f"joined {hub.worker_ids('newcomer')[0]}")
                await output.wait_for("functions .*newcomer::echo")
            await end(math, signal.SIGKILL)
            await output.wait_for("stopped")
            (worker_id,) = hub.worker_ids("my-worker")
            process.send_signal(signal.SIGTERM)
            with trio.fail_after(PATIENCE):
                assert await process.wait() == 0
            await hub.wait_until_gone(worker_id)
