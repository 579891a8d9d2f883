"""The engine's side of a sandbox host process that dies or hangs."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import trio
import trio.testing

from iii_core.errors import SandboxHostDied
from iii_core.records import OpenContext
from iii_core.sandbox.host import SandboxHost
from iii_core.sandbox.hostclient import open_sandbox_host
from iiitools.processes import still_running
from iiitools.waiting import PATIENCE

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]
BACKEND = "bubblewrap"


@asynccontextmanager
async def host_in(folder: Path) -> AsyncGenerator[tuple[SandboxHost, psutil.Process]]:
    """A sandbox host, and its process."""
    before = set(psutil.Process().children())
    context = OpenContext(state_dir=folder, runtime_dir=folder, home=folder, environ=dict(os.environ))
    async with open_sandbox_host(context) as host:
        (process,) = set(psutil.Process().children()) - before
        assert "iii_core.sandbox.hostproc" in process.cmdline()
        yield host, process


async def _expect_died(call: Callable[[], Awaitable[object]]) -> None:
    with pytest.raises(SandboxHostDied, match="signal 9"):
        await call()


async def test_calls_in_flight_fail_when_the_host_dies_and_so_do_later_ones(tmp_path: Path) -> None:
    with trio.fail_after(PATIENCE):
        async with host_in(tmp_path) as (host, process):
            driver = await host.driver(BACKEND)
            process.suspend()  # so that it cannot answer any more
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_expect_died, lambda: host.probe(BACKEND))
                nursery.start_soon(_expect_died, lambda: driver.state("one"))
                await trio.testing.wait_all_tasks_blocked()
                process.kill()
            assert await host.wait_died() == "signal 9"
            await _expect_died(lambda: host.probe(BACKEND))
            await _expect_died(lambda: driver.destroy("one", keep_writable=True))


async def test_the_block_ends_the_host_and_what_is_on_record(tmp_path: Path) -> None:
    with trio.fail_after(PATIENCE):
        async with host_in(tmp_path) as (host, process):
            await host.driver(BACKEND)
            assert (await host.probe(BACKEND)).ok
            children = process.children(recursive=True)
            assert list((tmp_path / "processes").iterdir())
    assert not still_running([process, *children])
    assert list((tmp_path / "processes").iterdir()) == []
