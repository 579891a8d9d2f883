"""The lifecycle that backends share, with a launcher whose boots end when the test says so."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from iii_core.errors import BootFailed, BootTimeout, SandboxError, SandboxNotFound, UnsupportedOperation
from iii_core.sandbox.console import Console
from iii_core.sandbox.launcher import Boot, Launcher, LaunchFailed
from iii_core.sandbox.launching import LaunchedDriver, open_launched
from iii_core.sandbox.port import Capability, Egress, Phase, RootImage, SandboxSpec


class TestBoot(Boot):
    __test__ = False

    def __init__(self, pipe: int | None, *, immortal: bool = False) -> None:
        self.link, self.inside = socket.socketpair()
        self.pid = 4711
        self.ended = trio.Event()
        self.exit = ""
        self.kills = 0
        self._pipe = pipe
        self._immortal = immortal

    def say(self, text: bytes) -> None:
        assert self._pipe is not None
        os.write(self._pipe, text)

    def end(self, how: str) -> None:
        if not self.ended.is_set():
            self.exit = how
            self.inside.close()
            if self._pipe is not None:
                os.close(self._pipe)
            self.ended.set()

    async def kill(self) -> None:
        self.kills += 1
        await trio.lowlevel.checkpoint()
        if not self._immortal:
            self.end("signal 9")


class ScriptedLauncher(Launcher):
    """Launches as the test arranged it, and notes what it was asked."""

    name = "scripted"
    capabilities = frozenset({Capability.PID_LIMIT})
    boot_timeout = 5.0

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.boots: list[TestBoot] = []
        self.log: list[str] = []
        self.says = b""
        self.fails: Exception | None = None
        self.hangs = False
        self.immortal = False

    @property
    def boot(self) -> TestBoot:
        return self.boots[-1]

    async def launch(self, spec: SandboxSpec, console: Console) -> TestBoot:
        self.log.append(f"launch {spec.id}")
        async with console.pipe(self._nursery) as pipe:
            os.write(pipe, self.says)
            if self.hangs:
                await trio.sleep_forever()
            if self.fails is not None:
                raise self.fails
            self.boots.append(TestBoot(os.dup(pipe), immortal=self.immortal))
        return self.boot

    async def remove(self, folder: Path) -> None:
        self.log.append(f"remove {folder.name}")
        await super().remove(folder)

    async def release(self, image: Path) -> None:
        self.log.append(f"release {image.name}")
        await trio.lowlevel.checkpoint()

    def remedy(self, said: str) -> str | None:
        return "turn it on" if "off" in said else None


class Bench:
    def __init__(self, folder: Path, driver: LaunchedDriver, launcher: ScriptedLauncher) -> None:
        self.folder = folder
        self.driver = driver
        self.launcher = launcher

    def spec(self, sandbox_id: str = "one", *, image: str = "image", egress: Egress | None = None) -> SandboxSpec:
        path = self.folder / image
        path.touch()
        return SandboxSpec(
            id=sandbox_id,
            root=RootImage(path=path, format="squashfs", digest=""),
            writable_dir=self.folder / f"{sandbox_id}.layer",
            console=self.folder / f"{sandbox_id}.console",
            hostname="box",
            egress=egress,
        )

    async def started(self, sandbox_id: str = "one") -> TestBoot:
        await self.driver.create(self.spec(sandbox_id))
        await self.driver.start(sandbox_id)
        return self.launcher.boot


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@asynccontextmanager
async def opened(folder: Path) -> AsyncGenerator[Bench]:
    """A driver, of which no descriptor is left afterwards."""
    made: list[ScriptedLauncher] = []

    def make(nursery: trio.Nursery) -> ScriptedLauncher:
        made.append(ScriptedLauncher(nursery))
        return made[0]

    before = open_descriptors()
    async with open_launched(make) as driver:
        yield Bench(folder, driver, made[0])
    assert open_descriptors() == before


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncGenerator[Bench]:
    async with opened(tmp_path) as bench:
        yield bench


async def test_an_end_that_nobody_asked_for(bench: Bench) -> None:
    boot = await bench.started()
    assert (await bench.driver.state("one")).pid == 4711
    boot.say(b"out of \x1b[31mfuel\n")
    boot.end("exit 7")
    event = await bench.driver.events().receive()
    assert (event.id, event.exit, event.console_tail) == ("one", "exit 7", "out of fuel")
    state = await bench.driver.state("one")
    assert (state.phase, state.pid, state.exit) == (Phase.STOPPED, None, "exit 7")
    with pytest.raises(SandboxError, match="exists only while it runs"):
        await bench.driver.link("one")
    await bench.driver.start("one")
    assert (await bench.driver.state("one")).exit is None


async def test_a_restart_waits_for_the_tidying(bench: Bench) -> None:
    """The link of the boot before is closed, and its console taken, when the next boot begins."""
    boot = await bench.started()
    boot.end("exit 0")
    await bench.driver.start("one")
    assert boot.link.fileno() == -1
    assert bench.launcher.boot.link.fileno() != -1
    (await bench.driver.link("one")).close()


async def test_a_boot_that_fails(bench: Bench) -> None:
    await bench.driver.create(bench.spec())
    bench.launcher.says = b"power is off\n"
    bench.launcher.fails = LaunchFailed("exit 1")
    with pytest.raises(BootFailed, match=r"ended while booting \(exit 1\): power is off") as caught:
        await bench.driver.start("one")
    assert caught.value.hint == "turn it on"
    assert caught.value.details == {
        "backend": "scripted",
        "sandbox": "one",
        "console": "power is off",
        "exit": "exit 1",
    }
    assert (await bench.driver.state("one")).phase is Phase.CREATED
    bench.launcher.says = b""
    with pytest.raises(BootFailed, match="nothing on its console") as caught:
        await bench.driver.start("one")
    assert caught.value.hint == "`iii doctor` checks what this backend needs"
    bench.launcher.fails = None
    await bench.driver.start("one")


async def test_a_launcher_that_refuses(bench: Bench) -> None:
    await bench.driver.create(bench.spec())
    bench.launcher.fails = SandboxError("no room")
    with pytest.raises(SandboxError, match="no room"):
        await bench.driver.start("one")
    assert (await bench.driver.state("one")).phase is Phase.CREATED


async def test_a_boot_that_takes_too_long(bench: Bench) -> None:
    await bench.driver.create(bench.spec())
    bench.launcher.hangs = True
    bench.launcher.boot_timeout = 0.05
    bench.launcher.says = b"waiting for godot\n"
    with pytest.raises(BootTimeout, match=r"within 0.05 s") as caught:
        await bench.driver.start("one")
    assert caught.value.details["console"] == "waiting for godot"


async def test_destroy_cuts_off_a_boot(bench: Bench) -> None:
    await bench.driver.create(bench.spec())
    bench.launcher.hangs = True
    errors: list[SandboxError] = []

    async def start() -> None:
        with pytest.raises(BootFailed, match="it was destroyed") as caught:
            await bench.driver.start("one")
        errors.append(caught.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        await trio.testing.wait_all_tasks_blocked()
        await bench.driver.destroy("one", keep_writable=False)
    assert errors
    with pytest.raises(SandboxNotFound):
        await bench.driver.start("one")
    assert not list(bench.folder.glob("*.layer*"))


async def test_destroy_cuts_off_a_stop(bench: Bench) -> None:
    """It does not wait for the grace."""
    boot = await bench.started()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(bench.driver.stop, "one", grace=600))
            await trio.testing.wait_all_tasks_blocked()
            await bench.driver.destroy("one", keep_writable=True)
    assert boot.kills == 1


async def test_stop_asks_nobody_but_waits(bench: Bench) -> None:
    boot = await bench.started()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(bench.driver.stop, "one", grace=60))
        await trio.testing.wait_all_tasks_blocked()
        boot.end("exit 0")
    assert boot.kills <= 1  # what has ended may be killed once more, which does nothing
    assert (await bench.driver.state("one")).exit == "exit 0"
    await bench.driver.stop("one", grace=60)
    with pytest.raises(trio.WouldBlock):
        bench.driver.events().receive_nowait()


async def test_a_stop_that_is_cancelled(bench: Bench) -> None:
    boot = await bench.started()
    with trio.move_on_after(0.01):
        await bench.driver.stop("one", grace=60)
    assert (await bench.driver.state("one")).phase is Phase.RUNNING
    boot.end("exit 5")
    assert (await bench.driver.events().receive()).exit == "exit 5"


async def test_what_cannot_be_ended_is_kept(bench: Bench) -> None:
    bench.launcher.immortal = True
    boot = await bench.started()
    for act in (partial(bench.driver.stop, grace=0), partial(bench.driver.destroy, keep_writable=False)):
        with pytest.raises(SandboxError, match="cannot be ended"):
            await act("one")
        assert (await bench.driver.state("one")).phase is Phase.RUNNING
    assert boot.kills == 2
    boot.end("signal 9")
    await bench.driver.destroy("one", keep_writable=False)


async def test_an_image_is_released_by_its_last_sandbox(bench: Bench) -> None:
    for name, image in (("one", "a"), ("two", "a"), ("three", "b")):
        await bench.driver.create(bench.spec(name, image=image))
    released: list[list[str]] = []
    for name in ("one", "three", "two"):
        bench.launcher.log.clear()
        await bench.driver.destroy(name, keep_writable=True)
        released.append(list(bench.launcher.log))
    assert released == [[], ["release b"], ["release a"]]


async def test_a_deletion_that_was_cut_off_is_ended_by_create(bench: Bench) -> None:
    spec = bench.spec()
    trash = spec.writable_dir.with_name("one.layer.removed")
    (trash / "x").mkdir(parents=True)
    await bench.driver.create(spec)
    assert bench.launcher.log == ["remove one.layer.removed"]
    assert not trash.exists()
    assert spec.writable_dir.exists()


async def test_undeclared_wishes_and_formats(bench: Bench) -> None:
    with pytest.raises(UnsupportedOperation, match="network access"):
        await bench.driver.create(bench.spec(egress=Egress()))
    spec = bench.spec()
    object.__setattr__(spec.root, "format", "ext4")
    with pytest.raises(UnsupportedOperation, match="boots squashfs images, not 'ext4'"):
        await bench.driver.create(spec)
    assert {path.name for path in bench.folder.iterdir()} == {"image"}


@pytest.mark.parametrize("arrange", [lambda path: path.symlink_to("/etc/passwd"), lambda path: path.mkdir()])
async def test_a_console_that_is_no_file(bench: Bench, arrange: partial[None]) -> None:
    spec = bench.spec()
    arrange(spec.console)
    await bench.driver.create(spec)
    with pytest.raises(SandboxError, match="console of sandbox 'one' cannot be written") as caught:
        await bench.driver.start("one")
    assert caught.value.hint
    assert bench.launcher.log == []


async def test_closing_ends_all_and_keeps_layers(tmp_path: Path) -> None:
    async with opened(tmp_path) as bench:
        boots = [await bench.started(name) for name in ("one", "two")]
        events = bench.driver.events()
    assert [boot.kills for boot in boots] == [1, 1]
    assert all(bench.spec(name).writable_dir.is_dir() for name in ("one", "two"))
    with pytest.raises(trio.EndOfChannel):
        await events.receive()
