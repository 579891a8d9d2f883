"""What the libvirt backend's tests have in common: sandboxes of a real sandbox host, and looks at what is left."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import socket
import sys
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import trio
from iii_sandbox_guest import fetch_kernel

from iii_core.project.locate import last_runtime_base
from iii_core.records import OpenContext
from iii_core.sandbox.agent import Agent, AgentTimeouts, open_agent
from iii_core.sandbox.hostclient import open_sandbox_host
from iii_core.sandbox.port import Limits, RootImage, SandboxDriver, SandboxSpec
from iii_core.testing.sandbox_harness import descendants

HERE = Path(__file__).parent
HOME = HERE.parents[2] / "build" / "guest"
ROOTS = Path("/run/iii-vm")
TOOLS = (
    "sh cat cp cut date dd df echo grep head id kill ls mkdir mknod mount nc od ps rm seq setsid sleep stat sync touch "
    "yes"
)
TCG: Mapping[str, Any] = {"accelerator": "tcg"}


def fetched_kernel() -> Path:
    """The release folder of this work tree's kernel for tests, downloaded at the first use."""
    HOME.mkdir(parents=True, exist_ok=True)
    with (HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return trio.run(fetch_kernel, HOME).modules.parent


def qemus(root: int | None = None) -> list[int]:
    """QEMU processes below one process (this one), zombies too."""
    lines = (line.split(maxsplit=1) for line in descendants(root or os.getpid()))
    return [int(pid) for pid, name in lines if name.startswith("qemu")]


def status_of(pid: int) -> dict[str, str]:
    """``/proc/PID/status`` (proc_pid_status(5))."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def cmdline_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")


def name_of(runtime_dir: Path) -> str:
    """The name that the drivers of a sandbox host have for it."""
    return hashlib.sha256(os.fsencode(runtime_dir)).hexdigest()[:10]


def forget(runtime_dir: Path) -> None:
    """Remove what killed hosts have left for their successors, of which there will be none."""
    for folder in (ROOTS / name_of(runtime_dir), last_runtime_base() / f"vm-{name_of(runtime_dir)}"):
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Bench:
    """Opens sandbox hosts and boots guests."""

    context: OpenContext
    image: RootImage
    folder: Path
    settings: Mapping[str, Any] = field(default_factory=lambda: TCG)

    def spec(
        self, sandbox_id: str = "box", *, image: RootImage | None = None, limits: Limits | None = None
    ) -> SandboxSpec:
        return SandboxSpec(
            id=sandbox_id,
            root=image or self.image,
            writable_dir=self.folder / f"{sandbox_id}.layer",
            console=self.folder / f"{sandbox_id}.console",
            hostname="boxed",
            limits=limits or Limits(memory_mib=192, disk_mib=64),
        )

    @asynccontextmanager
    async def driver(
        self, *, environ: Mapping[str, str] | None = None, **settings: Any
    ) -> AsyncGenerator[SandboxDriver]:
        """In a sandbox host of its own, as an engine has it."""
        context = replace(self.context, environ={**self.context.environ, **(environ or {})})
        async with open_sandbox_host(context, config={"libvirt": {**self.settings, **settings}}) as host:
            yield await host.driver("libvirt")

    @asynccontextmanager
    async def sandbox(
        self, spec: SandboxSpec | None = None, **settings: Any
    ) -> AsyncGenerator[tuple[SandboxDriver, Agent]]:
        """One running guest and its agent."""
        spec = spec or self.spec()
        async with self.driver(**settings) as driver:
            await driver.create(spec)
            await driver.start(spec.id)
            async with agent_of(driver, spec.id) as agent:
                yield driver, agent

    def remains(self) -> set[str]:
        """Files of the engine and its host that should end with a driver, and QEMUs."""
        run = (path for path in self.context.runtime_dir.rglob("*") if path.name != "processes")
        roots = (path for path in ROOTS.glob("*") if path.name in self.projects())
        return {*map(str, run), *map(str, roots), *(f"process {pid}" for pid in qemus())}

    def projects(self) -> set[str]:
        """Names of this bench's folders in `ROOTS`."""
        return {name_of(self.context.runtime_dir)}

    @contextmanager
    def nothing_remains(self) -> Iterator[None]:
        """The block leaves no process, socket, domain folder or record; mounts go with the sandbox host."""
        before = self.remains()
        yield
        left = self.remains() - before
        assert not left, sorted(left)


@asynccontextmanager
async def agent_of(
    driver: SandboxDriver, sandbox_id: str, *, resync: bool = False, timeouts: AgentTimeouts | None = None
) -> AsyncGenerator[Agent]:
    link: socket.socket = await driver.link(sandbox_id)
    link.setblocking(False)
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(link))
    async with open_agent(stream, tunnel_ports=[], serve_tunnel=_refuse, resync=resync, timeouts=timeouts) as agent:
        yield agent


async def _refuse(_: trio.abc.Stream) -> None:
    raise AssertionError("nobody connects in this test")


def python(*arguments: str | Path) -> list[str]:
    """A command line for a Python script of these tests."""
    return [sys.executable, *map(str, arguments)]
