"""From the order to start a virtual machine to its agent's READY; and the same from a saved state.

The machine is emulated (TCG), whatever the host can do, so that the figures compare. The reference of a start is QEMU
by hand: the same kernel, initramfs, disks and machine on one command line, and a socket for the agent. The budget is
that plus half a second: libvirt, the sandbox host, private mounts, another user, seccomp. The reference of a restored
state is the start itself. All take turns.
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import trio
from iii_sandbox_guest import Needs, create_data_disk, fetch_kernel, prepare_boot
from iii_sandbox_guest.boot import DATA_SERIAL, LINK_PORT, ROOT_SERIAL
from iii_sandbox_guest.emptyimage import write_empty_image

from iii_core.records import OpenContext
from iii_core.sandbox.agent import open_agent
from iii_core.sandbox.hostclient import open_sandbox_host
from iii_core.sandbox.port import Limits, RootImage, SandboxDriver, SandboxSpec, Snapshots
from iii_core.testing.sandbox_harness import agent_of
from iiitools.bench import Row

HOME = Path(__file__).resolve().parents[1] / "build" / "guest"
ROUNDS = 5
WARMUP = 1
BUDGET = 0.5
MEMORY_MIB = 512
DISK_MIB = 1024
Timed = Callable[[], Awaitable[float]]


def measure() -> list[Row]:
    """Start against QEMU by hand, with and without the budget; restore against start."""
    HOME.mkdir(parents=True, exist_ok=True)
    trio.run(fetch_kernel, HOME)
    with tempfile.TemporaryDirectory() as name:
        ours, by_hand, restored = trio.run(compare, Path(name))
    command = ["qemu-system-x86_64", "--version"]
    version = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[3]
    conditions = f"{len(os.sched_getaffinity(0))} CPUs, TCG, {MEMORY_MIB} MiB, as uid {os.geteuid()}"
    qemu = f"QEMU {version} by hand"
    return [
        row("libvirt: start to READY", ours, by_hand + BUDGET, f"{qemu}, + {BUDGET:g} s", 1.0, conditions),
        row("libvirt: start to READY", ours, by_hand, qemu, 1.25, conditions),
        row("libvirt: restore to READY", restored, ours, "start to READY", 0.2, conditions),
    ]


def row(name: str, ours: float, reference: float, reference_name: str, aim: float, conditions: str) -> Row:
    """Times in seconds."""
    return Row(
        name=name,
        unit="s",
        ours=ours,
        reference=reference,
        reference_name=reference_name,
        aim=aim,
        better="lower",
        conditions=conditions,
    )


async def compare(folder: Path) -> tuple[float, float, float]:
    """Median seconds: our start, QEMU by hand, a restored state."""
    runtime = folder / "run"
    runtime.mkdir(mode=0o700)
    context = OpenContext(state_dir=folder / "state", runtime_dir=runtime, home=HOME, environ=dict(os.environ))
    image = folder / "empty.squashfs"
    write_empty_image(image)
    names = (f"vm-{number}" for number in itertools.count())
    async with open_sandbox_host(context, config={"libvirt": {"accelerator": "tcg"}}) as host:
        driver = await host.driver("libvirt")
        assert isinstance(driver, Snapshots)
        saved = await save(driver, spec_of(folder, image, "saved"), folder / "saved.state")

        async def start() -> float:
            return await run(driver, spec_of(folder, image, next(names)), driver.start)

        async def restore() -> float:
            return await run(driver, spec_of(folder, image, next(names)), partial(restore_from, driver, saved))

        return await medians(start, partial(by_hand, folder, image), restore)


async def medians(first: Timed, second: Timed, third: Timed) -> tuple[float, float, float]:
    """Of each, taken in turns."""
    samples: list[tuple[float, float, float]] = []
    for _ in range(WARMUP + ROUNDS):
        samples.append((await first(), await second(), await third()))
    one, two, three = (statistics.median(column) for column in zip(*samples[WARMUP:], strict=True))
    return one, two, three


def spec_of(folder: Path, image: Path, name: str) -> SandboxSpec:
    """A sandbox of the empty image."""
    return SandboxSpec(
        id=name,
        root=RootImage(path=image, format="squashfs", digest="sha256:" + "0" * 64),
        writable_dir=folder / f"{name}.layer",
        console=folder / f"{name}.console",
        hostname="bench",
        limits=Limits(memory_mib=MEMORY_MIB, disk_mib=DISK_MIB),
    )


async def save(driver: SandboxDriver, spec: SandboxSpec, state: Path) -> Path:
    """A state of a guest whose agent has just become ready."""
    assert isinstance(driver, Snapshots)
    await driver.create(spec)
    await driver.start(spec.id)
    async with agent_of(driver, spec.id):
        await driver.save(spec.id, state)
    await driver.destroy(spec.id, keep_writable=False)
    return state


async def restore_from(driver: Snapshots, state: Path, sandbox_id: str) -> None:
    """As `SandboxDriver.start`."""
    await driver.restore(sandbox_id, state)


async def run(driver: SandboxDriver, spec: SandboxSpec, begin: Callable[[str], Awaitable[None]]) -> float:
    """One sandbox up to its agent's READY; making its disk, and its end, are not measured."""
    await driver.create(spec)
    start = time.perf_counter()
    await begin(spec.id)
    link = trio.SocketStream(trio.socket.from_stdlib_socket(await driver.link(spec.id)))
    async with open_agent(link, tunnel_ports=[], serve_tunnel=refuse, resync=True):
        taken = time.perf_counter() - start
    await driver.destroy(spec.id, keep_writable=False)
    return taken


async def refuse(stream: trio.abc.Stream) -> None:
    """Nobody connects."""
    await stream.aclose()


async def by_hand(folder: Path, image: Path) -> float:
    """The same machine on a command line of its own."""
    files = prepare_boot(HOME, needs=Needs())
    data, address = folder / "hand.img", folder / "hand.sock"
    data.unlink(missing_ok=True)
    address.unlink(missing_ok=True)
    await create_data_disk(data, DISK_MIB << 20)
    argv = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-machine", "q35", "-accel", "tcg,tb-size=64"]
    argv += ["-cpu", "max", "-m", str(MEMORY_MIB), "-display", "none", "-no-reboot", "-serial", "null"]
    argv += ["-kernel", str(files.kernel), "-initrd", str(files.initramfs), "-append", files.cmdline]
    argv += ["-device", "virtio-serial-pci", "-chardev", f"socket,id=link,path={address}"]
    argv += ["-device", f"virtserialport,chardev=link,name={LINK_PORT}"]
    argv += ["-drive", f"if=none,id=root,file={image},format=raw,readonly=on"]
    argv += ["-device", f"virtio-blk-pci,drive=root,serial={ROOT_SERIAL}"]
    argv += ["-drive", f"if=none,id=data,file={data},format=raw,discard=unmap"]
    argv += ["-device", f"virtio-blk-pci,drive=data,serial={DATA_SERIAL}"]
    async with trio.open_nursery() as nursery:
        with trio.socket.socket(trio.socket.AF_UNIX) as listener:
            await listener.bind(str(address))
            listener.listen()
            start = time.perf_counter()
            process = await nursery.start(partial(trio.run_process, argv, check=False))
            link, _ = await listener.accept()
        async with open_agent(trio.SocketStream(link), tunnel_ports=[], serve_tunnel=refuse):
            taken = time.perf_counter() - start
        process.kill()
    return taken
