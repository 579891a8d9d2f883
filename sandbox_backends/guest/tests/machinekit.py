"""Virtual machines for tests: QEMU by itself, without a sandbox backend."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio
from iii_sandbox_guest import BootFiles, Kernel, Needs, fetch_kernel, prepare_boot
from iii_sandbox_guest.boot import DATA_SERIAL, LINK_PORT, ROOT_SERIAL

from iii_core.sandbox.agent import Agent, AgentTimeouts, ServeTunnel, open_agent

WORK_TREE = Path(__file__).parents[3]
HOME = WORK_TREE / "build" / "guest"
TOOLS = """
sh cat cp date dd df echo env grep head hostname id ls mkdir mknod mount mv nc od ps rm seq setsid sleep stat stty sync
tail tar touch true wc
"""
BOOT_SECONDS = 120  # emulated, and perhaps on a machine that has something else to do


def fetched_kernel() -> Kernel:
    """The kernel of this work tree's tests, downloaded at the first use."""
    HOME.mkdir(parents=True, exist_ok=True)
    with (HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return trio.run(fetch_kernel, HOME)


def make_root_image(folder: Path) -> Path:
    """A root image with busybox and next to nothing else: /proc, /etc and the like are the agent's to make."""
    tree, image = folder / "tree", folder / "root.squashfs"
    (tree / "bin").mkdir(parents=True)
    (tree / "bin" / "busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (tree / "bin" / "busybox").chmod(0o755)
    for tool in TOOLS.split():
        (tree / "bin" / tool).symlink_to("busybox")
    (tree / "dev").symlink_to("/bin")  # an image may hold what it likes where the agent puts its own
    os.mkfifo(tree / "tmp")
    options = ["-all-root", "-noappend", "-quiet", "-no-progress", "-comp", "lz4"]
    subprocess.run(["mksquashfs", tree, image, *options], check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return image


@dataclass
class Machine:
    """One virtual machine: what it is made of, and the QEMU that runs while `running`."""

    folder: Path
    root: Path | None
    data: Path | None = None
    memory: int = 192
    needs: Needs = field(default_factory=lambda: Needs(data_disk=False))
    files: BootFiles | None = None
    process: trio.Process | None = None

    @property
    def console(self) -> str:
        return (self.folder / "console").read_text(errors="replace")

    @property
    def link(self) -> Path:
        return self.folder / "link"

    def argv(self) -> Sequence[str]:
        files = self.files or prepare_boot(HOME, needs=self.needs)
        machine = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-machine", "q35", "-cpu", "max"]
        machine += ["-accel", "tcg,tb-size=64", "-m", str(self.memory), "-display", "none", "-no-reboot"]
        machine += ["-kernel", str(files.kernel), "-initrd", str(files.initramfs), "-append", files.cmdline]
        machine += ["-serial", f"file:{self.folder}/console", "-device", "virtio-serial-pci"]
        machine += ["-chardev", f"socket,id=link,path={self.link},server=on,wait=off"]
        machine += ["-device", f"virtserialport,chardev=link,name={LINK_PORT}"]
        if self.root is not None:
            machine += ["-drive", f"if=none,id=root,file={self.root},format=raw,readonly=on,file.locking=off"]
            machine += ["-device", f"virtio-blk-pci,drive=root,serial={ROOT_SERIAL}"]
        if self.data is not None:
            machine += ["-drive", f"if=none,id=data,file={self.data},format=raw,discard=unmap"]
            machine += ["-device", f"virtio-blk-pci,drive=data,serial={DATA_SERIAL}"]
        return machine

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[trio.Process]:
        self.folder.mkdir(exist_ok=True)
        self.link.unlink(missing_ok=True)
        async with trio.open_nursery() as nursery:
            self.process = await nursery.start(partial(trio.run_process, self.argv(), check=False))
            try:
                yield self.process
            finally:
                if self.process.returncode is None:
                    self.process.kill()

    async def connect(self) -> trio.SocketStream:
        with trio.fail_after(30):
            while True:  # QEMU tells nobody when it listens
                try:
                    return await trio.open_unix_socket(str(self.link))
                except (FileNotFoundError, ConnectionRefusedError):
                    await trio.sleep(0.005)

    @asynccontextmanager
    async def agent(
        self,
        stream: trio.SocketStream,
        *,
        resync: bool = False,
        tunnel_ports: Sequence[int] = (),
        serve_tunnel: ServeTunnel | None = None,
    ) -> AsyncGenerator[Agent]:
        async with open_agent(
            stream,
            tunnel_ports=tunnel_ports,
            serve_tunnel=serve_tunnel or _refuse,
            hostname="machine",
            timeouts=AgentTimeouts(boot=BOOT_SECONDS),
            resync=resync,
        ) as agent:
            yield agent

    @asynccontextmanager
    async def booted(self) -> AsyncGenerator[Agent]:
        """Boot, and power off at the end, which must not take long."""
        async with self.running() as process, self.agent(await self.connect()) as agent:
            yield agent
            with trio.fail_after(40):
                await agent.power_off(1)
                await process.wait()

    async def runs_to_its_end(self) -> str:
        """Boot a machine that cannot: gives its console once QEMU has ended by itself."""
        async with self.running() as process:
            with trio.fail_after(BOOT_SECONDS):
                await process.wait()
        return self.console


async def _refuse(_: trio.abc.Stream) -> None:
    raise AssertionError("nobody connects in this test")
