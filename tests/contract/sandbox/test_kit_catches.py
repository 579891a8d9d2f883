"""The conformance kit catches backends that break a promise: each breaks one, and the check that is about it fails.

Each is `MemoryBackend`, which passes, with one thing done wrong.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from iii_core.errors import SandboxError, SandboxNotFound, SnapshotUnusable
from iii_core.records import OpenContext
from iii_core.sandbox.host import open_inline_host
from iii_core.sandbox.port import (
    Capability,
    Limits,
    Phase,
    RootImage,
    SandboxDriver,
    SandboxEvent,
    SandboxSpec,
    SandboxState,
    Snapshots,
)
from iii_core.testing import sandbox_harness, sandbox_kit, sandbox_kit_faults, sandbox_kit_snapshots
from iii_core.testing.memory_agent import MemoryProcess, Program
from iii_core.testing.memory_backend import CAPABILITIES, MemoryBackend
from iii_core.testing.memory_programs import COMMANDS
from iii_core.testing.sandbox_harness import SandboxesUnderTest as Sandboxes
from iii_core.testing.sandbox_trial import name_of, select


class Honest(SandboxDriver):
    """Hands everything on; what is broken overrides a method, and puts what it leaks into ``leaks``."""

    def __init__(self, inner: SandboxDriver, leaks: ExitStack) -> None:
        self.inner = inner
        self.leaks = leaks

    async def create(self, spec: SandboxSpec) -> None:
        await self.inner.create(spec)

    async def start(self, sandbox_id: str) -> None:
        await self.inner.start(sandbox_id)

    async def link(self, sandbox_id: str) -> socket.socket:
        return await self.inner.link(sandbox_id)

    async def stop(self, sandbox_id: str, *, grace: float) -> None:
        await self.inner.stop(sandbox_id, grace=grace)

    async def destroy(self, sandbox_id: str, *, keep_writable: bool) -> None:
        await self.inner.destroy(sandbox_id, keep_writable=keep_writable)

    async def state(self, sandbox_id: str) -> SandboxState:
        return await self.inner.state(sandbox_id)

    def events(self) -> trio.MemoryReceiveChannel[SandboxEvent]:
        return self.inner.events()

    async def save(self, sandbox_id: str, folder: Path) -> None:
        assert isinstance(self.inner, Snapshots)
        await self.inner.save(sandbox_id, folder)

    async def restore(self, sandbox_id: str, folder: Path) -> None:
        assert isinstance(self.inner, Snapshots)
        await self.inner.restore(sandbox_id, folder)


class EndsWhatItSaves(Honest):
    async def save(self, sandbox_id: str, folder: Path) -> None:
        await super().save(sandbox_id, folder)
        await self.inner.stop(sandbox_id, grace=0)


class RestoresNothing(Honest):
    """It boots afresh, with today's files."""

    async def restore(self, sandbox_id: str, folder: Path) -> None:
        await self.inner.start(sandbox_id)


class LeavesHalfAState(Honest):
    async def save(self, sandbox_id: str, folder: Path) -> None:
        half = folder.with_name(f".{folder.name}.saving")
        half.mkdir()
        await trio.lowlevel.checkpoint()
        half.rmdir()
        await super().save(sandbox_id, folder)


class SavesForEverybody(Honest):
    async def save(self, sandbox_id: str, folder: Path) -> None:
        await super().save(sandbox_id, folder)
        await trio.Path(folder).chmod(0o755)


class TakesAnyState(Honest):
    async def restore(self, sandbox_id: str, folder: Path) -> None:
        try:
            await super().restore(sandbox_id, folder)
        except SnapshotUnusable:
            await self.inner.start(sandbox_id)


class IgnoresGrace(Honest):
    async def stop(self, sandbox_id: str, *, grace: float) -> None:
        await self.inner.stop(sandbox_id, grace=0)


class WaitsLongerThanGrace(Honest):
    async def stop(self, sandbox_id: str, *, grace: float) -> None:
        if grace:
            await self.inner.stop(sandbox_id, grace=600)
        await self.inner.stop(sandbox_id, grace=0)


class LeaksAFile(Honest):
    async def create(self, spec: SandboxSpec) -> None:
        await self.inner.create(spec)
        spec.writable_dir.with_name("leaked").touch()


class LeaksADescriptor(Honest):
    async def start(self, sandbox_id: str) -> None:
        await self.inner.start(sandbox_id)
        self.leaks.callback(os.close, os.open(os.devnull, os.O_RDONLY))


class LeaksAProcess(Honest):
    async def start(self, sandbox_id: str) -> None:
        await self.inner.start(sandbox_id)
        process = await trio.to_thread.run_sync(subprocess.Popen, ["sleep", "60"])
        self.leaks.enter_context(process)  # waits
        self.leaks.callback(process.kill)


class KeepsTheLayer(Honest):
    async def destroy(self, sandbox_id: str, *, keep_writable: bool) -> None:
        await self.inner.destroy(sandbox_id, keep_writable=True)


class DropsTheLayer(Honest):
    async def destroy(self, sandbox_id: str, *, keep_writable: bool) -> None:
        await self.inner.destroy(sandbox_id, keep_writable=False)


class ForgetsAnId(Honest):
    async def stop(self, sandbox_id: str, *, grace: float) -> None:
        await self.inner.stop(sandbox_id, grace=grace)
        await self.inner.destroy(sandbox_id, keep_writable=True)


class RemembersAnId(Honest):
    async def state(self, sandbox_id: str) -> SandboxState:
        try:
            return await self.inner.state(sandbox_id)
        except SandboxNotFound:
            return SandboxState(phase=Phase.STOPPED)


class SharesWrites(Honest):
    async def create(self, spec: SandboxSpec) -> None:
        await self.inner.create(replace(spec, writable_dir=spec.writable_dir.with_name("shared.layer")))


class TakesAnyId(Honest):
    """Checks the id, and has made a folder for it by then."""

    async def create(self, spec: SandboxSpec) -> None:
        spec.writable_dir.mkdir(exist_ok=True)
        await self.inner.create(spec)


class TakesATakenId(Honest):
    async def create(self, spec: SandboxSpec) -> None:
        await self.inner.destroy(spec.id, keep_writable=True)
        await self.inner.create(spec)


class StartsTwice(Honest):
    async def start(self, sandbox_id: str) -> None:
        if (await self.inner.state(sandbox_id)).phase is not Phase.RUNNING:
            await self.inner.start(sandbox_id)


class GivesASecondLink(Honest):
    async def link(self, sandbox_id: str) -> socket.socket:
        try:
            return await self.inner.link(sandbox_id)
        except SandboxNotFound:
            raise
        except SandboxError:
            one, other = socket.socketpair()
            other.close()
            return self.leaks.enter_context(one)


class ReportsAskedEnds(Honest):
    def __init__(self, inner: SandboxDriver, leaks: ExitStack) -> None:
        super().__init__(inner, leaks)
        self.send, self.receive = trio.open_memory_channel[SandboxEvent](10)

    def events(self) -> trio.MemoryReceiveChannel[SandboxEvent]:
        return self.receive

    async def stop(self, sandbox_id: str, *, grace: float) -> None:
        await self.inner.stop(sandbox_id, grace=grace)
        self.send.send_nowait(SandboxEvent(id=sandbox_id, exit="signal 9"))


class ReportsNothing(ReportsAskedEnds):
    async def stop(self, sandbox_id: str, *, grace: float) -> None:
        await self.inner.stop(sandbox_id, grace=grace)


class SaysItRuns(Honest):
    async def state(self, sandbox_id: str) -> SandboxState:
        return replace(await self.inner.state(sandbox_id), phase=Phase.RUNNING)


class ClaimsToEnforce(Honest):
    async def state(self, sandbox_id: str) -> SandboxState:
        return replace(await self.inner.state(sandbox_id), unenforced=())


class IgnoresWishes(Honest):
    async def create(self, spec: SandboxSpec) -> None:
        await self.inner.create(replace(spec, egress=None, mounts=(), limits=Limits()))


class OpensTheConsole(Honest):
    async def create(self, spec: SandboxSpec) -> None:
        await self.inner.create(spec)
        self.console = spec.console

    async def start(self, sandbox_id: str) -> None:
        await self.inner.start(sandbox_id)
        self.console.chmod(0o644)


class StopIsNoMatterOfWaiting(Honest):
    """A cancelled stop has killed by then."""

    async def stop(self, sandbox_id: str, *, grace: float) -> None:
        await self.inner.stop(sandbox_id, grace=0)
        await trio.sleep(grace)


BROKEN: tuple[tuple[type[Honest], str], ...] = (
    (IgnoresGrace, "stop_waits_for_grace"),
    (WaitsLongerThanGrace, "stop_kills_after_grace"),
    (LeaksAFile, "lifecycle"),
    (LeaksADescriptor, "lifecycle"),
    (LeaksAProcess, "many_at_once"),
    (KeepsTheLayer, "destroy_drops_the_layer"),
    (DropsTheLayer, "writes_survive_restart"),
    (ForgetsAnId, "stop_is_idempotent"),
    (RemembersAnId, "unknown_ids"),
    (SharesWrites, "writes_are_private"),
    (TakesAnyId, "bad_ids"),
    (TakesATakenId, "taken_id"),
    (StartsTwice, "start_twice"),
    (GivesASecondLink, "link_has_one_taker"),
    (ReportsAskedEnds, "asked_end_is_not_reported"),
    (ReportsNothing, "unasked_end_is_reported"),
    (SaysItRuns, "lifecycle"),
    (ClaimsToEnforce, "limits_are_kept"),
    (IgnoresWishes, "undeclared_is_refused"),
    (OpensTheConsole, "console"),
    (StopIsNoMatterOfWaiting, "cancelled_stop"),
    (EndsWhatItSaves, "saved_it_runs_on"),
    (SavesForEverybody, "saved_it_runs_on"),
    (RestoresNothing, "restored_as_it_was"),
    (LeavesHalfAState, "cancelled_save"),
    (TakesAnyState, "what_cannot_be_saved_or_restored"),
)


class Bench:
    """Opens broken backends, and frees what they leak."""

    def __init__(self, context: OpenContext, folder: Path) -> None:
        self.context = context
        self.folder = folder
        self.leaks = ExitStack()

    def under_test(
        self,
        broken: type[Honest],
        *more: Capability,
        able: frozenset[Capability] = CAPABILITIES,
        programs: Mapping[str, Program] | None = None,
    ) -> Sandboxes:
        @asynccontextmanager
        async def open_driver() -> AsyncGenerator[SandboxDriver]:
            async with open_inline_host({"memory": MemoryBackend(programs).record()}, self.context) as host:
                yield broken(await host.driver("memory"), self.leaks)

        image = RootImage(path=self.folder / "none", format="squashfs", digest="sha256:" + "0" * 64)
        return Sandboxes(
            open=open_driver, image=image, folder=self.folder, capabilities=able | set(more), commands=COMMANDS
        )


@pytest.fixture
def bench(context: OpenContext, tmp_path: Path) -> Iterator[Bench]:
    folder = tmp_path / "sandboxes"
    folder.mkdir()
    made = Bench(context, folder)
    with made.leaks:
        yield made


async def fails(check: sandbox_kit.Check, under_test: Sandboxes) -> bool:
    """Whether the check fails by itself; it waits for seconds where it would wait for half a minute."""
    with pytest.MonkeyPatch.context() as patch, trio.move_on_after(40) as limit:
        for module in (sandbox_harness, sandbox_kit, sandbox_kit_faults, sandbox_kit_snapshots):
            patch.setattr(module, "PATIENCE", 2.0)
        patch.setattr(sandbox_harness, "SETTLING", 0.3)
        try:
            await check(under_test)
        except Exception:
            return True
    assert not limit.cancelled_caught, "it waits in vain, and does not notice"
    return False


@pytest.mark.parametrize(("broken", "name"), BROKEN, ids=[broken.__name__ for broken, _ in BROKEN])
async def test_the_check_about_it_fails(broken: type[Honest], name: str, bench: Bench) -> None:
    (check,) = [check for check in select(name) if name_of(check) == name]
    assert await fails(check, bench.under_test(broken)), f"{name} does not see that a backend {broken.__name__}"


@pytest.mark.parametrize("name", sorted({name for _, name in BROKEN}))
async def test_the_same_check_passes_what_is_honest(name: str, bench: Bench) -> None:
    (check,) = [check for check in select(name) if name_of(check) == name]
    await check(bench.under_test(Honest))


async def test_a_declared_ability_that_is_missing_fails(bench: Bench) -> None:
    abilities = ((Capability.DISK_LIMIT, "disk_size"), (Capability.MOUNTS, "mounts"), (Capability.EGRESS, "egress"))
    for capability, name in abilities:
        (check,) = select(name)
        assert await fails(check, bench.under_test(Honest, capability)), name


async def test_users_that_are_not_declared_fail(bench: Bench) -> None:
    (check,) = select("users")
    assert await fails(check, bench.under_test(Honest, able=frozenset()))


async def connect_out(process: MemoryProcess) -> int:
    """``connect ADDRESS PORT`` from this machine."""
    try:
        await (await trio.open_tcp_stream(process.argv[1], int(process.argv[2]))).aclose()
    except OSError:
        return 1
    return 0


async def connect_unseen(process: MemoryProcess) -> int:
    """As one that gets through, and does not notice."""
    await connect_out(process)
    return 1


@pytest.mark.parametrize("connect", [connect_out, connect_unseen])
async def test_a_network_that_nobody_asked_for_fails(
    bench: Bench, connect: Callable[[MemoryProcess], Awaitable[int | None]]
) -> None:
    (check,) = select("no_network")
    assert await fails(check, bench.under_test(Honest, programs={"connect": connect}))
    await check(bench.under_test(Honest))
