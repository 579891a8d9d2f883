"""Which sandbox backend is used, and what happens when the host that holds them dies."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pluggy
import pytest
import trio
import trio.testing

from iii_core.errors import BackendUnavailable, PluginMissing, SandboxHostDied, UnsupportedOperation
from iii_core.host import PluginHost
from iii_core.records import OpenContext, ProbeResult, SandboxBackend
from iii_core.sandbox.host import SandboxHost, open_inline_host
from iii_core.sandbox.port import Capability, Egress, SandboxDriver
from iii_core.testing.memory_backend import MemoryBackend
from iii_core.workers.check import UnopenedBackends
from iii_core.workers.sandbox_service import SandboxService, open_sandboxes
from iii_core.workers.spec import WorkerSpec

hookimpl = pluggy.HookimplMarker("iii")


class Backends:
    """A plugin with two backends, one stronger than the other."""

    def __init__(self) -> None:
        self.weak, self.strong = MemoryBackend(), MemoryBackend()
        self.weak_can: frozenset[Capability] = frozenset()

    @hookimpl
    def iii_sandbox_backends(self) -> list[SandboxBackend]:
        weak = replace(self.weak.record("weak", strength=1), capabilities=self.weak_can)
        return [weak, self.strong.record("strong", strength=9)]


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


async def test_one_that_works_only_when_asked_for_is_passed_over_and_why_is_told(
    hosts: Hosts, backends: Backends
) -> None:
    backends.strong.probe_result = ProbeResult(ok=True, automatic=False, reason="it is slow here")
    async with hosts.service() as sandboxes:
        for _ in range(2):
            chosen = await sandboxes.backend("auto")
            assert chosen.record.name == "weak"
            assert chosen.notes == ("strong is not chosen by itself: it is slow here",)
        named = await sandboxes.backend("strong")
        assert (named.record.name, named.notes) == ("strong", ())


async def test_where_only_such_a_one_works_the_hint_says_how_to_have_it(hosts: Hosts, backends: Backends) -> None:
    backends.strong.probe_result = ProbeResult(ok=True, automatic=False, reason="it is slow here")
    backends.weak.probe_result = ProbeResult(ok=False, reason="forbidden")
    async with hosts.service() as sandboxes:
        with pytest.raises(BackendUnavailable, match="strong: it is slow here; weak: forbidden") as caught:
            await sandboxes.backend("auto")
        assert "'sandbox: {backend: strong}' uses strong nevertheless" in (caught.value.hint or "")


async def test_what_a_backend_lacks_is_known_before_it_is_used(tmp_path: Path, backends: Backends) -> None:
    backends.weak_can = frozenset({Capability.EGRESS})
    hosts, needs = Hosts(backends, tmp_path), WorkerSpec(name="w", source="x", egress=Egress())
    async with hosts.service() as sandboxes:
        await sandboxes.check("weak", needs)
        assert hosts.opened == [], "nothing was opened for that"
        for name in ("strong", "auto"):
            with pytest.raises(UnsupportedOperation, match="strong does not support network access") as caught:
                await sandboxes.check(name, needs)
            assert (caught.value.hint or "").endswith("weak has it")
        with pytest.raises(PluginMissing) as missing:
            await sandboxes.check("wek", needs)
        assert missing.value.hint == "did you mean 'weak'?"


async def test_without_an_engine_auto_may_be_any(backends: Backends) -> None:
    (weak, strong), needs = backends.iii_sandbox_backends(), WorkerSpec(name="w", source="x", egress=Egress())
    able = replace(weak, capabilities=frozenset({Capability.EGRESS}))
    await UnopenedBackends({"weak": able, "strong": strong}).check("auto", needs)
    await UnopenedBackends({}).check("auto", needs)
    for name in ("auto", "strong"):
        with pytest.raises(UnsupportedOperation):
            await UnopenedBackends({"weak": weak, "strong": strong}).check(name, needs)


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
