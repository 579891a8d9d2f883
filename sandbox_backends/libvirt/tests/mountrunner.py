"""A guest that takes a read-only folder for a writable one, and servers that fail; for `test_libvirt_mounts`.

    unshare --mount python mountrunner.py IMAGE HOME FOLDER

Prints one JSON object of what was found.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import trio
from iii_sandbox_guest.boot import GuestMount
from iii_sandbox_libvirt import machine, needs, shares
from iii_sandbox_libvirt.driver import open_driver
from iii_sandbox_libvirt.policy import Accelerator, Settings

from iii_core.errors import IIIError
from iii_core.records import OpenContext
from iii_core.sandbox import linux
from iii_core.sandbox.port import Limits, Mount, RootImage, SandboxDriver, SandboxSpec
from iii_core.testing.sandbox_harness import agent_of, descendants, run, run_well

image, home, folder = (Path(argument) for argument in sys.argv[1:4])
found: dict[str, object] = {}
SHOWN = folder / "shown"
SPEC = SandboxSpec(
    id="box",
    root=RootImage(path=image, format="squashfs", digest="sha256:" + "0" * 64),
    writable_dir=folder / "box.layer",
    console=folder / "box.console",
    hostname="boxed",
    limits=Limits(memory_mib=128, disk_mib=16),
    mounts=(Mount(source=SHOWN, target="/data"),),
)


def all_writable(mounts: Sequence[Mount]) -> tuple[GuestMount, ...]:
    """As a guest's kernel would have it that somebody has broken into."""
    return shares.guest_mounts([replace(mount, writable=True) for mount in mounts])


async def look_inside(driver: SandboxDriver) -> None:
    await driver.start(SPEC.id)
    async with agent_of(driver, SPEC.id) as agent:
        table = await run_well(agent, ("/bin/cat", "/proc/mounts"))
        found["guest-flags"] = next(line.split()[3] for line in table.splitlines() if " /data " in line).split(",")
        _, found["write"] = await run(agent, ("/bin/touch", "/data/new"))
        _, found["remove"] = await run(agent, ("/bin/rm", "/data/hello"))
    await driver.stop(SPEC.id, grace=0)
    found["files"] = sorted(path.name for path in SHOWN.iterdir())


async def told(driver: SandboxDriver) -> str:
    try:
        await driver.start(SPEC.id)
    except IIIError as error:
        return f"{error.code} {error.message} | {error.hint}"
    return "no error"


async def main() -> None:
    (folder / "run").mkdir(mode=0o700)
    SHOWN.mkdir(mode=0o777)
    SHOWN.chmod(0o777)
    (SHOWN / "hello").touch()
    context = OpenContext(state_dir=folder / "state", runtime_dir=folder / "run", home=home, environ=dict(os.environ))
    machine.guest_mounts = all_writable  # type: ignore[attr-defined]
    async with open_driver(Settings(accelerator="tcg"), context, Accelerator.TCG) as driver:
        await driver.create(SPEC)
        await look_inside(driver)
        for name, program in (("silent", "/bin/false"), ("talking", "/bin/date"), ("absent", "/nonexistent")):
            needs.VIRTIOFSD = program  # type: ignore[misc]
            found[name] = await told(driver)
    found["left"] = [line for line in descendants(os.getpid(), zombies=False) if "python" not in line]
    print(json.dumps(found))


linux.adopt_orphans()
trio.run(main)
