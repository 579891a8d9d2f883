"""A sandbox host that stands still is taken for dead; one that is left ends by itself."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import trio

from iii_core.errors import SandboxHostDied
from iii_core.records import OpenContext
from iii_core.sandbox import hostclient
from iii_core.sandbox.host import SandboxHost
from iiitools.waiting import PATIENCE

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]
BACKEND = "bubblewrap"


@asynccontextmanager
async def host_in(folder: Path) -> AsyncGenerator[tuple[SandboxHost, psutil.Process]]:
    """A sandbox host, and its process."""
    before = set(psutil.Process().children())
    context = OpenContext(state_dir=folder, runtime_dir=folder, home=folder, environ=dict(os.environ))
    async with hostclient.open_sandbox_host(context) as host:
        (process,) = set(psutil.Process().children()) - before
        yield host, process


async def test_a_frozen_host_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostclient, "PING_INTERVAL", 1.0)
    with trio.fail_after(PATIENCE):
        async with host_in(tmp_path) as (host, process):
            process.suspend()
            monkeypatch.setattr(hostclient, "SILENCE", 0.5)  # not before: one that lives may be slow
            with pytest.raises(SandboxHostDied, match="signal 9"):
                await host.probe(BACKEND)
            assert await host.wait_died() == "signal 9"


async def test_a_host_that_answers_stays_however_long_its_calls_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostclient, "PING_INTERVAL", 0.01)
    with trio.fail_after(PATIENCE):
        async with host_in(tmp_path) as (host, _):
            assert (await host.probe(BACKEND)).ok  # boots a sandbox


async def test_a_frozen_host_does_not_keep_the_block_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostclient, "SHUTDOWN_TIMEOUT", 0.5)
    with trio.fail_after(PATIENCE):
        async with host_in(tmp_path) as (_, process):
            process.suspend()
            begun = time.monotonic()
    assert time.monotonic() - begun < 15, "half of what it is given by default"
    assert not process.is_running()


async def test_a_host_that_is_left_ends_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing the socket is what ends it: to be killed at last would cost `SHUTDOWN_TIMEOUT`, and its tidying up."""
    ended: list[str] = []
    real = hostclient._wait_end  # pyright: ignore[reportPrivateUsage]

    async def wait_end(*arguments: object) -> str:
        ended.append(await real(*arguments))  # type: ignore[arg-type]
        return ended[-1]

    monkeypatch.setattr(hostclient, "_wait_end", wait_end)
    async with host_in(tmp_path) as (host, process):
        await host.driver(BACKEND)
    assert ended == ["exit 0"]
    assert not process.is_running()
