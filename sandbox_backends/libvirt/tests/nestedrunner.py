"""What `test_libvirt_nested` runs inside an emulated machine that has KVM.

usage: nestedrunner.py HOME IMAGE FOLDER, in a mount namespace of its own; prints one JSON object per step.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import trio
from iii_sandbox_libvirt import probe

from iii_core.host import PluginHost
from iii_core.records import OpenContext, SandboxBackend
from iii_core.sandbox import host as sandbox_host
from iii_core.sandbox.port import RootImage, SandboxSpec
from iii_core.testing.sandbox_harness import agent_of, run

SLOWNESS = 10  # of a processor that is emulated
CHECK = "lifecycle"


def tell(step: str, **found: Any) -> None:
    print(json.dumps({"step": step, **found}, default=str), flush=True)


async def boot_one(home: Path, image: Path, folder: Path) -> None:
    """The probe, and one guest."""
    context = OpenContext(state_dir=folder / "state", runtime_dir=folder / "run", home=home, environ=dict(os.environ))
    spec = SandboxSpec(
        id="box",
        root=RootImage(path=image, format="squashfs", digest="sha256:" + "0" * 64),
        writable_dir=folder / "layer",
        console=folder / "console",
        hostname="boxed",
    )
    backends = PluginHost.create(environ={}).collect(SandboxBackend)
    async with sandbox_host.open_inline_host(backends, context, {}) as host:
        tell("probe", **asdict(await host.probe("libvirt")))
        driver = await host.driver("libvirt")
        await driver.create(spec)
        await driver.start(spec.id)
        state = await driver.state(spec.id)
        tell("guest", **look_at(state.pid), notes=state.notes)
        async with agent_of(driver, spec.id) as agent:
            status, printed = await run(agent, ["/bin/sh", "-c", "echo out; exit 7"])
        tell("exec", printed=printed, code=status.as_shell())
        await driver.destroy(spec.id, keep_writable=False)


def look_at(pid: int | None) -> dict[str, Any]:
    """What QEMU was told, and what libvirt noted of its domains."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    noted = "".join(path.read_text() for path in Path("/run/iii-vm").glob("*/lv/run/qemu/*.xml"))
    return {"accelerator": words[words.index("-accel") + 1], "type": re.findall(r"<domain type='(\w+)'", noted)}


def check(home: Path, folder: Path) -> None:
    """A check of the conformance kit, in a sandbox host of its own, as users run it: the verdict is known by now."""
    done = subprocess.run(
        [Path(sys.executable).with_name("iii"), "sandbox", "check", "libvirt", "-k", CHECK, "--json"],
        cwd=folder,
        env={**os.environ, "III_HOME": str(home)},
        stdout=subprocess.PIPE,
        check=False,
    )
    tell("check", **json.loads(done.stdout or b"{}"))


def main() -> None:
    home, image, folder = (Path(argument) for argument in sys.argv[1:])
    folder.mkdir(mode=0o700)
    probe.DEADLINES = {accelerator: SLOWNESS * limit for accelerator, limit in probe.DEADLINES.items()}  # type: ignore[misc]
    sandbox_host.PROBE_TIMEOUT *= SLOWNESS
    trio.run(boot_one, home, image, folder)
    check(home, folder)


main()
