"""Whether sandboxes boot with a backend: found out by booting one; and kept, where that takes long.

That a kernel offers ``/dev/kvm`` says little: it may open, create a machine and even run a few instructions of it, and
yet no guest ever boots. So what counts is a booted kernel whose agent has answered within a deadline.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import trio

from iii_core.errors import BootTimeout
from iii_core.project.files import write_atomic
from iii_core.records import OpenContext
from iii_core.sandbox.agent import open_agent
from iii_core.sandbox.port import RootImage, SandboxDriver, SandboxSpec, SandboxState
from iii_sandbox_guest.emptyimage import write_empty_image

T = TypeVar("T")
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


async def boot_once(
    context: OpenContext, open_driver: Callable[[Path], AbstractAsyncContextManager[SandboxDriver]], *, deadline: float
) -> SandboxState:
    """Boot an empty image until its agent is ready, and end it; leaves nothing. Gives its state while it ran.

    Args:
        context: the backend's.
        open_driver: opens the backend, given a private folder that is removed in the end.
        deadline: seconds from the start until the agent must have answered.

    Raises:
        BootTimeout: it did not; ``details["console"]`` has the last lines of its console.
        IIIError: whatever the backend raises.
    """
    context.runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="probe-", dir=context.runtime_dir) as name:
        folder = Path(name)
        spec = SandboxSpec(
            id="probe",
            root=RootImage(path=folder / "empty.squashfs", format="squashfs", digest=""),
            writable_dir=folder / "layer",
            console=folder / "console",
            hostname="probe",
        )
        write_empty_image(spec.root.path)
        async with open_driver(folder) as driver:
            await driver.create(spec)
            state = None
            with trio.move_on_after(deadline):
                state = await _boot(driver, spec.id)
            if state is None:
                raise BootTimeout(
                    f"a guest's agent did not answer within {deadline:g} s", details={"console": _tail(spec.console)}
                )
            await driver.destroy(spec.id, keep_writable=False)
            return state


async def _boot(driver: SandboxDriver, sandbox_id: str) -> SandboxState:
    await driver.start(sandbox_id)
    link = trio.SocketStream(trio.socket.from_stdlib_socket(await driver.link(sandbox_id)))
    async with open_agent(link, tunnel_ports=[], serve_tunnel=_refuse):
        return await driver.state(sandbox_id)


async def _refuse(stream: trio.abc.Stream) -> None:
    await stream.aclose()


def _tail(console: Path) -> list[str]:
    return console.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:] if console.exists() else []


def verdict_path(home: Path, backend: str, *, files: Sequence[Path], settings: str) -> Path:
    """Where a verdict is kept: by the host's boot, the user, and all else that it depends on. Raises OSError.

    Args:
        home: ``$III_HOME``.
        backend: its name.
        files: programs, kernels; a changed one has no verdict.
        settings: those of the backend, in words.
    """
    depends = (
        BOOT_ID.read_text(encoding="ascii"),
        *(f"{path}:{path.stat().st_mtime_ns}" for path in files),
        settings,
        str(os.geteuid()),
    )
    return home / "cache" / f"{backend}-{hashlib.sha256(repr(depends).encode()).hexdigest()[:24]}.json"


def read_verdict(path: Path, kind: type[T]) -> T | None:
    """The verdict that `write_verdict` kept there, if there is one."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError):
        return None


def write_verdict(path: Path, verdict: msgspec.Struct) -> None:
    """Keep a verdict. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(path, msgspec.json.encode(verdict))
