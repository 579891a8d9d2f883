"""What goes wrong before and while a guest runs: a stable code, what it said, what helps, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from iii_core.errors import (
    BackendUnavailable,
    BootTimeout,
    IIIError,
    ImageError,
    LinkError,
    SandboxError,
    SandboxHostDied,
    StorageFull,
)
from iii_core.sandbox.agent import AgentTimeouts, ProcessSpec
from iii_core.sandbox.console import DROPPED, FILE_LIMIT
from iii_core.sandbox.host_processes import ProcessId
from iii_core.sandbox.hostclient import open_sandbox_host
from iii_core.sandbox.port import Limits, Phase, SandboxEvent
from iii_core.testing.sandbox_harness import TESTS, descendants, run, run_well

from .bareguest import FLOOD, HANG, LINES, write_kernel
from .vmkit import Bench, agent_of, qemus

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(300)]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with room for 8 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", TESTS, folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


async def start_fails(bench: Bench, kind: type[IIIError], *, kernel: str) -> IIIError:
    """Create and start: the start's error, after which the same sandbox can be destroyed."""
    with bench.nothing_remains():
        async with bench.driver(kernel=kernel) as driver:
            await driver.create(bench.spec())
            with pytest.raises(kind) as caught:
                await driver.start("box")
            assert (await driver.state("box")).phase is not Phase.RUNNING
            assert qemus() == []
            await driver.destroy("box", keep_writable=False)
    assert not bench.spec().writable_dir.exists()
    assert caught.value.hint
    return caught.value


async def ends_by_itself(bench: Bench, **changes: object) -> SandboxEvent:
    """A guest that gives up: the event that tells so."""
    with bench.nothing_remains():
        async with bench.driver() as driver:
            await driver.create(replace(bench.spec(), **changes))  # type: ignore[arg-type]
            await driver.start("box")
            with pytest.raises(LinkError):
                async with agent_of(driver, "box"):
                    pass
            with trio.fail_after(100):
                event = await driver.events().receive()
            assert (await driver.state("box")).exit == event.exit
            return event


async def test_a_kernel_without_a_module(bench: Bench, kernel: Path, tmp_path: Path) -> None:
    modules = tmp_path / "6.1.0-poor" / "modules"
    modules.mkdir(parents=True)
    (modules.parent / "vmlinux").symlink_to(kernel / "vmlinux")
    (modules / "kernel").symlink_to(kernel / "modules" / "kernel")
    shutil.copy(kernel / "modules" / "modules.builtin", modules)
    lines = (kernel / "modules" / "modules.dep").read_text(encoding="utf-8").splitlines(keepends=True)
    (modules / "modules.dep").write_text("".join(line for line in lines if "squashfs" not in line), encoding="utf-8")
    error = await start_fails(bench, BackendUnavailable, kernel=str(modules.parent))
    assert error.code == "W231"
    assert "squashfs" in error.message
    assert "CONFIG_SQUASHFS" in error.message


async def test_no_kernel(bench: Bench) -> None:
    error = await start_fails(bench, BackendUnavailable, kernel="/nonexistent/vmlinuz")
    assert "/nonexistent/vmlinuz" in error.message


async def test_what_is_no_kernel(bench: Bench, kernel: Path, tmp_path: Path) -> None:
    """QEMU refuses it, and its words come out."""
    (tmp_path / "k").mkdir()
    (tmp_path / "k" / "vmlinux").write_bytes(b"\x7fELF" + bytes(100))
    (tmp_path / "k" / "modules").symlink_to(kernel / "modules")
    error = await start_fails(bench, SandboxError, kernel=str(tmp_path / "k"))
    assert error.code in ("W230", "W232")
    assert "qemu" in error.message.casefold()


async def test_a_missing_image(bench: Bench) -> None:
    with bench.nothing_remains():
        async with bench.driver() as driver:
            missing = replace(bench.image, path=bench.folder / "missing.squashfs")
            with pytest.raises(ImageError) as caught:
                await driver.create(bench.spec(image=missing))
            assert caught.value.hint


async def test_an_image_that_vanishes(bench: Bench, tmp_path: Path) -> None:
    copy = replace(bench.image, path=tmp_path / "image.squashfs")
    shutil.copy(bench.image.path, copy.path)
    with bench.nothing_remains():
        async with bench.driver() as driver:
            await driver.create(bench.spec(image=copy))
            copy.path.unlink()
            with pytest.raises(IIIError) as caught:
                await driver.start("box")
            assert str(copy.path) in caught.value.message
            assert caught.value.hint


async def test_a_corrupt_image(bench: Bench, tmp_path: Path) -> None:
    """The guest says so on its console, and ends."""
    corrupt = replace(bench.image, path=tmp_path / "corrupt.squashfs")
    corrupt.path.write_bytes(bytes(8192))
    event = await ends_by_itself(bench, root=corrupt)
    assert "iii-agent: cannot boot" in event.console_tail
    assert "iii-agent: cannot boot" in bench.spec().console.read_text(encoding="utf-8", errors="replace")


async def test_the_least_memory_is_enough(bench: Bench) -> None:
    with bench.nothing_remains():
        async with bench.sandbox(bench.spec(limits=Limits(memory_mib=96, disk_mib=16))) as (_, agent):
            assert (await run_well(agent, ("/bin/id", "-u"))).strip() == "0"


async def test_less_memory_is_refused(bench: Bench) -> None:
    with bench.nothing_remains():
        async with bench.driver() as driver:
            with pytest.raises(SandboxError, match="at least 96 MiB") as caught:
                await driver.create(bench.spec(limits=Limits(memory_mib=64)))
            assert caught.value.hint


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(path: Path) -> None:
    """Take all the room there is."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


@as_root
async def test_no_room_for_the_writable_disk(bench: Bench, small_disk: Path) -> None:
    fill(small_disk / "full")
    with bench.nothing_remains():
        async with bench.driver() as driver:
            spec = replace(bench.spec(), writable_dir=small_disk / "layer")
            with pytest.raises(IIIError) as caught:
                await driver.create(spec)
            assert caught.value.code in (StorageFull.default_code, SandboxError.default_code)
            assert "disk" in caught.value.message
    assert names_in(small_disk) == ["full"]


@as_root
async def test_the_hosts_disk_runs_full(bench: Bench, small_disk: Path) -> None:
    """The guest's write fails, and the guest runs on."""
    with bench.nothing_remains():
        spec = replace(bench.spec(), writable_dir=small_disk / "layer")
        async with bench.sandbox(spec) as (driver, agent):
            fill = ("/bin/dd", "if=/dev/urandom", "of=/workspace/big", "bs=1M", "count=24", "conv=fsync")
            with trio.fail_after(200):
                status, printed = await run(agent, fill)
            assert status.as_shell() != 0, printed
            assert (await run_well(agent, ("/bin/id", "-u"))).strip() == "0"
            assert (await driver.state("box")).phase is Phase.RUNNING


async def test_a_guest_that_never_answers(bench: Bench, kernel: Path, tmp_path: Path) -> None:
    bare = write_kernel(tmp_path / "bare", HANG, kernel / "modules")
    with bench.nothing_remains():
        async with bench.driver(kernel=str(bare)) as driver:
            await driver.create(bench.spec())
            await driver.start("box")
            with pytest.raises(BootTimeout) as caught:
                async with agent_of(driver, "box", timeouts=AgentTimeouts(boot=1)):
                    pass
            assert caught.value.code == "W233"
            assert "console" in (caught.value.hint or "")
            assert (await driver.state("box")).phase is Phase.RUNNING
            with trio.fail_after(40):
                await driver.stop("box", grace=0.1)
            assert qemus() == []


@pytest.mark.parametrize("code", [FLOOD, LINES], ids=["one-line", "lines"])
async def test_a_console_that_never_stops(bench: Bench, kernel: Path, tmp_path: Path, code: bytes) -> None:
    """Its file stays below its limit, and the guest can be ended as any."""
    bare = write_kernel(tmp_path / "bare", code, kernel / "modules")
    console = bench.spec().console
    with bench.nothing_remains():
        async with bench.driver(kernel=str(bare)) as driver:
            await driver.create(bench.spec())
            await driver.start("box")
            with trio.fail_after(200):
                while not console.read_bytes().startswith(DROPPED):  # a file tells nobody
                    assert console.stat().st_size <= FILE_LIMIT
                    await trio.sleep(0.1)
            assert console.stat().st_size <= FILE_LIMIT
            with trio.fail_after(40):
                await driver.destroy("box", keep_writable=False)


async def test_output_that_nobody_reads(bench: Bench) -> None:
    """It waits in the guest; others' output comes through, and QEMU does not grow."""
    with bench.nothing_remains():
        async with bench.sandbox() as (driver, agent):
            await agent.spawn(ProcessSpec(argv=["/bin/yes", "x" * 1000], env={}))
            pid = (await driver.state("box")).pid
            before = resident(pid)
            with trio.fail_after(200):
                for _ in range(10):
                    await run_well(agent, ("/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=64k", "count=10"))
            assert resident(pid) - before < 64 << 20


def resident(pid: int | None) -> int:
    """Bytes (proc_pid_statm(5))."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_a_killed_qemu(bench: Bench) -> None:
    """It is told, nothing of it is left, and the same sandbox starts again."""
    with bench.nothing_remains():
        async with bench.driver() as driver:
            await driver.create(bench.spec())
            for _ in range(2):
                await driver.start("box")
                pid = (await driver.state("box")).pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                with trio.fail_after(40):
                    event = await driver.events().receive()
                assert event.exit == "signal 9"
                assert qemus() == []


async def test_a_killed_sandbox_host(bench: Bench) -> None:
    """No QEMU outlives it, and the next one clears away the rest."""
    spec = bench.spec()
    with bench.nothing_remains():
        async with open_sandbox_host(bench.context, config={"libvirt": bench.settings}) as host:
            driver = await host.driver("libvirt")
            await driver.create(spec)
            await driver.start("box")
            (qemu,) = qemus()
            os.kill(host_pid(), signal.SIGKILL)
            with trio.fail_after(40):
                assert await host.wait_died() == "signal 9"
            assert not is_running(qemu)
            with pytest.raises(SandboxHostDied):
                await driver.start("box")
        async with bench.sandbox(spec) as (_, agent):
            assert (await run_well(agent, ("/bin/id", "-u"))).strip() == "0"


def is_running(pid: int) -> bool:
    """A zombie is not."""
    return ProcessId.of(pid) is not None


def host_pid() -> int:
    """The sandbox host, the one Python that is our child."""
    return next(int(line.split()[0]) for line in descendants(os.getpid()) if "python" in line)


async def test_two_drivers_of_one_folder_in_turn(bench: Bench) -> None:
    """Everything of the first is gone before the second begins."""
    for _ in range(2):
        with bench.nothing_remains():
            async with bench.driver() as driver:
                await driver.create(bench.spec())
                await driver.start("box")


@pytest.mark.long
async def test_starts_cut_off_everywhere(bench: Bench) -> None:
    """By time, here; `test_libvirt_cancellation` does it by step."""
    with bench.nothing_remains():
        async with bench.driver() as driver:
            await driver.create(bench.spec())
            for milliseconds in (1, 20, 80, 150, 250, 350, 500, 700):
                with trio.move_on_after(milliseconds / 1000):
                    await driver.start("box")
                if (await driver.state("box")).phase is not Phase.RUNNING:
                    assert qemus() == []
                await driver.stop("box", grace=0)
                assert qemus() == []
            await partial(driver.destroy, "box", keep_writable=False)()
