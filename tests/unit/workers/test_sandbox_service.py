"""Which sandbox backend is used, and what happens when the host that holds them dies."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pluggy
import pytest
import trio
import trio.testing

from iii_core.errors import BackendUnavailable, PluginMissing, SandboxHostDied
from iii_core.host import PluginHost
from iii_core.records import OpenContext, ProbeResult, SandboxBackend
from iii_core.sandbox.host import SandboxHost, open_inline_host
from iii_core.sandbox.port import SandboxDriver
from iii_core.testing.memory_backend import MemoryBackend
from iii_core.workers.sandbox_service import SandboxService, open_sandboxes

hookimpl = pluggy.HookimplMarker("iii")


class Backends:
    """A plugin with two backends, one stronger than the other."""

    def __init__(self) -> None:
        self.weak, self.strong = MemoryBackend(), MemoryBackend()

    @hookimpl
    def iii_sandbox_backends(self) -> list[SandboxBackend]:
        return [self.weak.record("weak", strength=1), self.strong.record("strong", strength=9)]


class MortalHost(SandboxHost):
    """An inline host that dies when it is told to; ``swept`` is when it may be replaced."""

    def __init__(self, inner: SandboxHost) -> None:
        self._inner = inner
        self.died = trio.Event()
        self.swept = trio.Event()

    async def driver(self, backend: str) -> SandboxDriver:
        self._raise_if_dead()
        return await self._inner.driver(backend)

    async def probe(self, backend: str) -> ProbeResult:
        self._raise_if_dead()
        return await self._inner.probe(backend)

    async def wait_died(self) -> str:
        await self.died.wait()
        return "signal 9"

    def _raise_if_dead(self) -> None:
        if self.died.is_set():
            raise SandboxHostDied("dead")


class Hosts:
    """Opens mortal hosts; ``opened`` are all of them, ``live`` how many blocks are open."""

    def __init__(self, backends: Backends, folder: Path) -> None:
        self._plugins = PluginHost.create(installed=False, plugins=[backends])
        self._folder = folder
        self.opened: list[MortalHost] = []
        self.live = 0

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[SandboxHost]:
        folder = self._folder
        context = OpenContext(state_dir=folder, runtime_dir=folder, home=folder, environ={})
        async with open_inline_host(self._plugins.collect(SandboxBackend), context) as inner:
            host = MortalHost(inner)
            self.opened.append(host)
            self.live += 1
            try:
                yield host
            finally:
                self.live -= 1
                if host.died.is_set():
                    with trio.move_on_after(10, shield=True):
                        await host.swept.wait()

    def service(self) -> AbstractAsyncContextManager[SandboxService]:
        return open_sandboxes(self._plugins, self.open)


@pytest.fixture
def backends() -> Backends:
    return Backends()


@pytest.fixture
def hosts(backends: Backends, tmp_path: Path) -> Hosts:
    return Hosts(backends, tmp_path)


async def test_the_strongest_that_works_and_any_by_name(hosts: Hosts, backends: Backends) -> None:
    async with hosts.service() as sandboxes:
        assert (await sandboxes.backend("auto")).record.name == "strong"
        assert (await sandboxes.backend("weak")).record.name == "weak"
        with pytest.raises(PluginMissing) as caught:
            await sandboxes.backend("none")
        assert caught.value.hint == "installed backends: strong, weak"
        assert len(hosts.opened) == 1


async def test_one_whose_probe_fails_is_passed_over(hosts: Hosts, backends: Backends) -> None:
    backends.strong.probe_result = ProbeResult(ok=False, reason="no such device", hint="buy one")
    async with hosts.service() as sandboxes:
        assert (await sandboxes.backend("auto")).record.name == "weak"


async def test_where_none_works_all_reasons_are_told(hosts: Hosts, backends: Backends) -> None:
    backends.strong.probe_result = ProbeResult(ok=False, reason="no such device", hint="buy one")
    backends.weak.probe_result = ProbeResult(ok=False, reason="forbidden")
    async with hosts.service() as sandboxes:
        with pytest.raises(BackendUnavailable, match="strong: no such device; weak: forbidden") as caught:
            await sandboxes.backend("auto")
        assert caught.value.hint == "buy one"


async def test_a_host_that_dies_is_replaced_when_it_has_been_swept(
    hosts: Hosts, caplog: pytest.LogCaptureFixture
) -> None:
    """Not sooner: the sweep of the old one would take the new one for a leftover."""
    async with hosts.service() as sandboxes:
        await sandboxes.backend("auto")
        first = hosts.opened[0]
        first.died.set()
        for _ in range(3):
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(SandboxHostDied):
                await sandboxes.backend("auto")
        assert "the sandbox host died (signal 9)" in caplog.text
        first.swept.set()
        await trio.testing.wait_all_tasks_blocked()
        assert (await sandboxes.backend("auto")).record.name == "strong"
        assert (len(hosts.opened), hosts.live) == (2, 1)


async def test_a_host_that_dies_over_a_probe_says_nothing_about_its_backends(hosts: Hosts) -> None:
    async with hosts.service() as sandboxes:
        await sandboxes.backend("weak")
        hosts.opened[0].died.set()
        with pytest.raises(SandboxHostDied):
            await sandboxes.backend("auto")
        hosts.opened[0].swept.set()


async def test_no_host_is_opened_before_it_is_needed(hosts: Hosts) -> None:
    async with hosts.service():
        await trio.testing.wait_all_tasks_blocked()
    assert hosts.opened == []
