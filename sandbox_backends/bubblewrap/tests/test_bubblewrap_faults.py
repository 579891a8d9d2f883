"""What is left when a process of this backend is killed from outside: an event, the console, the writable layer."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from iii_core.errors import BootFailed, IIIError, SandboxError, SandboxNotFound
from iii_core.sandbox.host_processes import ProcessId
from iii_core.sandbox.hostclient import open_sandbox_host
from iii_core.sandbox.port import Limits, Phase, RootImage, SandboxDriver, SandboxEvent
from iii_core.testing.sandbox_harness import MARK, SandboxesUnderTest, agent_of, descendants, nothing_left, run_well

from .bwrapkit import Bench

pytestmark = pytest.mark.integration
modes = pytest.mark.parametrize("mode", ["kernel", "fuse"])
LIMITS = Limits(cpus=1, memory_mib=256, pids=64)


def pids_of(*names: str) -> list[int]:
    """Of the processes below this one, those so named."""
    return [int(line.split()[0]) for line in descendants(os.getpid()) if line.split(" ", 1)[1] in names]


def pids_running(module: str) -> list[int]:
    """Of the processes below this one, those that run a module of Python or are about to run something else."""
    found: list[int] = []
    for line in descendants(os.getpid(), zombies=False):
        with suppress(OSError):  # it has ended by now
            if module.encode() in Path(f"/proc/{line.split()[0]}/cmdline").read_bytes().split(b"\0"):
                found.append(int(line.split()[0]))
    return found


def keepers() -> list[int]:
    """The process that waits for the one that holds the mounts, that one, and whom it has just forked."""
    return pids_running("iii_sandbox_bubblewrap.keeper.service")


def keeper_pid(which: str = "keeper") -> int:
    """The child of ours that holds the mounts, or the process that waits for it."""
    waiting, keeper = keepers()[:2]
    return keeper if which == "keeper" else waiting


async def end_or_another_keeper(driver: SandboxDriver, killed: int) -> None:
    """Wait until the end of a sandbox is told that was started over this keeper, or was not: there is another then."""
    with trio.fail_after(20):
        while len(found := keepers()) < 2 or killed in found:
            with trio.move_on_after(0.02):
                assert (await driver.events().receive()).exit == "signal 9"
                return


def agent_below(bwrap: int | None) -> int:
    assert bwrap is not None
    return int(descendants(bwrap)[0].split()[0])


@asynccontextmanager
async def running(bench: Bench, mode: str, *names: str) -> AsyncGenerator[SandboxDriver]:
    """Sandboxes with a program and a marker file in each, on a driver; afterwards the machine is as it was before.

    Writable layers and consoles stay, as they should, and are removed here.
    """
    under_test = SandboxesUnderTest(
        open=lambda: bench.driver(mode=mode), image=bench.image, folder=bench.folder, capabilities=frozenset()
    )
    async with nothing_left(under_test):
        async with bench.driver(mode=mode) as driver:
            for name in names:
                await driver.create(bench.spec(name, limits=LIMITS))
                await driver.start(name)
                async with agent_of(driver, name) as agent:
                    await run_well(agent, ("/bin/sh", "-c", f"echo {name} > {MARK}"))
                    await driver.stop(name, grace=0)
                await driver.start(name)
            yield driver
            for name in names:
                await driver.destroy(name, keep_writable=False)
        assert {path.suffix for path in bench.folder.iterdir()} <= {".console"}
        for path in bench.folder.iterdir():
            path.unlink()


async def next_event(driver: SandboxDriver) -> SandboxEvent:
    with trio.fail_after(20):
        return await driver.events().receive()


async def check_restart(driver: SandboxDriver, name: str, *, stop: bool = False) -> None:
    """It starts again, with what it wrote."""
    if stop:
        await driver.stop(name, grace=0)
    await driver.start(name)
    async with agent_of(driver, name) as agent:
        assert await run_well(agent, ("/bin/cat", MARK)) == f"{name}\n"


@modes
@pytest.mark.parametrize("victim", ["agent", "bwrap"])
async def test_a_sandbox_is_killed(bench: Bench, mode: str, victim: str) -> None:
    async with running(bench, mode, "one", "two") as driver:
        (state, other) = (await driver.state("one"), await driver.state("two"))
        assert state.pid is not None
        agent = agent_below(state.pid)
        os.kill(agent if victim == "agent" else state.pid, signal.SIGKILL)
        event = await next_event(driver)
        assert event.id == "one"
        assert event.exit == ("exit 137" if victim == "agent" else "signal 9")  # bwrap says 128 + signal
        state = await driver.state("one")
        assert (state.phase, state.pid, state.exit) == (Phase.STOPPED, None, event.exit)
        assert ProcessId.of(agent) is None
        assert await driver.state("two") == other
        await check_restart(driver, "one")


@modes
@pytest.mark.parametrize("victim", ["keeper", "waiting"])
async def test_the_keeper_is_killed(bench: Bench, mode: str, victim: str) -> None:
    """All sandboxes end with it, each tells, and the next start gets a new keeper."""
    others = set(descendants(os.getpid()))  # what fixtures of the whole session run
    async with running(bench, mode, "one", "two") as driver:
        processes = set(descendants(os.getpid())) - others
        os.kill(keeper_pid(victim), signal.SIGKILL)
        events = [await next_event(driver), await next_event(driver)]
        assert {(event.id, event.exit) for event in events} == {("one", "signal 9"), ("two", "signal 9")}
        assert processes
        assert not processes & set(descendants(os.getpid()))
        for name in ("one", "two"):
            await check_restart(driver, name)


async def test_the_keeper_is_killed_while_booting(bench: Bench) -> None:
    async with running(bench, "kernel", "one") as driver:
        for delay in (0, 0.001, 0.002, 0.003, 0.005, 0.008):
            await driver.stop("one", grace=0)
            errors: list[SandboxError] = []

            async def start(errors: list[SandboxError] = errors) -> None:
                try:
                    await driver.start("one")
                except SandboxError as error:
                    errors.append(error)

            with trio.fail_after(20):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(start)
                    await trio.sleep(delay)
                    killed = keeper_pid()
                    os.kill(killed, signal.SIGKILL)
            if not errors:  # it was killed right before or right after: with the last keeper or with the next
                await end_or_another_keeper(driver, killed)
            if (await driver.state("one")).phase is not Phase.RUNNING:
                await driver.start("one")
        await check_restart(driver, "one", stop=True)


@pytest.mark.parametrize("victim", ["host", "waiting", "keeper"])
async def test_killed_while_bwrap_has_not_released_its_child(bench: Bench, tmp_path: Path, victim: str) -> None:
    """No orphan: whoever of those above it is killed, the child ends too, though nothing tells it to."""
    stuck = tmp_path / "stuck"
    await trio.run_process(["cc", "-static", "-o", str(stuck), str(Path(__file__).parent / "stuck.c")])
    async with open_sandbox_host(bench.context, config={"bubblewrap": {"program": str(stuck)}}) as host:
        driver = await host.driver("bubblewrap")
        await driver.create(bench.spec(limits=LIMITS))
        async with trio.open_nursery() as nursery:

            async def start() -> None:
                with pytest.raises(IIIError):
                    await driver.start("box")

            nursery.start_soon(start)
            with trio.fail_after(20):
                while len(pids_of("stuck")) < 2:  # noqa: ASYNC110
                    await trio.sleep(0.005)
            processes = [ProcessId.of(pid) for pid in pids_of("stuck")]
            pid = pids_running("iii_core.sandbox.hostproc")[0] if victim == "host" else keeper_pid(victim)
            os.kill(pid, signal.SIGKILL)
            with trio.fail_after(20):
                while any(process is not None and process.alive() for process in processes):  # noqa: ASYNC110
                    await trio.sleep(0.005)


async def test_the_file_system_server_is_killed(bench: Bench) -> None:
    """Over FUSE: what runs gets errors from its disk; the next start mounts the image again."""
    async with running(bench, "fuse", "one") as driver:
        (server,) = pids_of("squashfuse_ll", "squashfuse")
        os.kill(server, signal.SIGKILL)
        await driver.stop("one", grace=0)
        await check_restart(driver, "one")


async def test_the_end_is_told_with_the_console(bench: Bench) -> None:
    async with running(bench, "kernel", "one") as driver:
        agent = agent_below((await driver.state("one")).pid)
        console = os.open(f"/proc/{agent}/fd/2", os.O_WRONLY)
        os.write(console, b"\x1b[31mhull breach\x1b[0m\n" * 1000)
        os.close(console)
        os.kill(agent, signal.SIGKILL)
        event = await next_event(driver)
        assert len(event.console_tail) <= 4096
        assert event.console_tail.endswith("\nhull breach")


async def test_a_sandbox_that_floods_its_console(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iii_core.sandbox.console.Console.__init__.__kwdefaults__", {"limit": 64 * 1024})
    async with running(bench, "kernel", "one") as driver:
        agent = agent_below((await driver.state("one")).pid)
        console = os.open(f"/proc/{agent}/fd/2", os.O_WRONLY)
        for _ in range(200):
            await trio.to_thread.run_sync(os.write, console, b"flood\n" * 1000)
        os.write(console, b"the end\n")
        os.close(console)
        os.kill(agent, signal.SIGKILL)
        assert (await next_event(driver)).console_tail.endswith("flood\nthe end")
        kept = await trio.Path(bench.spec("one").console).read_bytes()
        assert len(kept) <= 64 * 1024
        assert kept.endswith(b"flood\nthe end\n")


async def test_an_image_without_a_file_system(bench: Bench, tmp_path: Path) -> None:
    junk = tmp_path / "junk.squashfs"
    junk.write_bytes(os.urandom(8192))
    image = RootImage(path=junk, format="squashfs", digest="")
    for mode in ("kernel", "fuse"):
        under_test = SandboxesUnderTest(
            open=lambda: bench.driver(), image=image, folder=bench.folder, capabilities=frozenset()
        )
        async with nothing_left(under_test), bench.driver(mode=mode) as driver:
            await driver.create(bench.spec("junk", image=image))
            for _ in range(2):
                with pytest.raises(SandboxError, match="the namespace keeper cannot boot"):
                    await driver.start("junk")
            assert (await driver.state("junk")).phase is Phase.CREATED
            await driver.destroy("junk", keep_writable=False)
            with pytest.raises(SandboxNotFound):
                await driver.state("junk")
            bench.spec("junk").console.unlink()


@pytest.mark.parametrize(
    ("obstacle", "said"),
    [
        (lambda layer: (layer / "upper").symlink_to("/etc"), "remove the worker and add it again"),
        (lambda layer: (layer / "upper").write_text("x"), "remove the worker and add it again"),
        pytest.param(
            lambda layer: (layer / "work").mkdir() or os.chown(layer / "work", 12345, 12345),
            "belongs to user id 12345",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away"),
        ),
    ],
)
async def test_a_writable_layer_that_is_not_ours(bench: Bench, obstacle: Callable[[Path], object], said: str) -> None:
    spec = bench.spec("odd")
    spec.writable_dir.mkdir()
    obstacle(spec.writable_dir)
    async with bench.driver() as driver:
        await driver.create(spec)
        with pytest.raises(BootFailed, match="ended while booting") as caught:
            await driver.start("odd")
        assert said in caught.value.message
        assert said in caught.value.details["console"]
        assert caught.value.code == "W232"
        await driver.destroy("odd", keep_writable=False)
    assert not list(bench.folder.glob("*.layer*"))
    assert await trio.Path("/etc/passwd").exists()
