"""What is said of a sandbox that ended: the agent's own reason, where it gave one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from iii_core.errors import LinkClosed, SandboxDied
from iii_core.records import OpenContext
from iii_core.sandbox.host import open_inline_host
from iii_core.sandbox.mounts import TARGET_REMEDY
from iii_core.sandbox.port import Limits, RootImage, SandboxDriver, SandboxSpec
from iii_core.testing.memory_backend import MemoryBackend
from iii_core.workers.live import open_live

BOOT = "[    1.2] virtio_blk virtio1\n"
TAKEN = "cannot boot: nothing can be mounted on /m: m is a link or file in the image"
LOGS = "see 'iii worker logs w --previous'"


async def run_and_break(backend: MemoryBackend, driver: SandboxDriver, spec: SandboxSpec, console: str) -> None:
    async with open_live(driver, spec, "w", saved=None, note=lambda _: None):
        with spec.console.open("a", encoding="ascii") as file:
            file.write(console)
        backend.crash(spec.id)
        raise LinkClosed("gone")


async def died(folder: Path, console: str) -> SandboxDied:
    """What is told of a sandbox whose link broke after it said this."""
    spec = SandboxSpec(
        id="one",
        root=RootImage(path=folder / "none", format="squashfs", digest=""),
        writable_dir=folder / "layer",
        console=folder / "console",
        hostname="one",
        limits=Limits(memory_mib=64),
    )
    spec.console.write_text("iii-agent: cannot boot: of an earlier run\n", encoding="ascii")
    context = OpenContext(state_dir=folder, runtime_dir=folder, home=folder, environ=dict(os.environ))
    backend = MemoryBackend()
    async with open_inline_host({"memory": backend.record()}, context) as host:
        driver = await host.driver("memory")
        with pytest.raises(SandboxDied) as caught:
            await run_and_break(backend, driver, spec, console)
    return caught.value


@pytest.mark.parametrize(
    ("console", "reason", "hint"),
    [
        (f"{BOOT}iii-agent: {TAKEN}\n[    5.1] reboot: Power down\n", f": {TAKEN}", TARGET_REMEDY),
        ("iii-agent: cannot boot: no \x1b[2Jdisk\n", ": cannot boot: no [2Jdisk", LOGS),
        (f"{BOOT}iii-agent: something else\n", "", LOGS),
        (f"somebody says iii-agent: {TAKEN}\n", "", LOGS),
        (BOOT, "", LOGS),
    ],
)
async def test_the_agents_reason(tmp_path: Path, console: str, reason: str, hint: str) -> None:
    error = await died(tmp_path, console)
    assert error.message.endswith(f"){reason}")
    assert error.hint == hint
