"""Cancels what a driver does at every point where it waits, in a mount namespace of its own.

    unshare --mount python cancelrunner.py IMAGE HOME FOLDER METHOD

METHOD: ``create``, ``start``, ``stop``, ``destroy``; with ``-egress`` behind it, of a sandbox that has a network; with
``-mounts``, of one that sees a folder.
Prints one JSON object per step: its number, what went wrong (null: nothing), whether the call was cut off there.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import traceback
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import trio
from iii_sandbox_libvirt import mounts
from iii_sandbox_libvirt.driver import open_driver
from iii_sandbox_libvirt.policy import Accelerator, Settings

from iii_core.errors import SandboxNotFound
from iii_core.records import OpenContext
from iii_core.sandbox import linux
from iii_core.sandbox.port import Egress, Limits, Mount, Phase, RootImage, SandboxDriver, SandboxSpec
from iii_core.testing.sandbox_harness import agent_of, cancelled_at, descendants, run_well

EVERY = 14  # steps that are all taken; of the later ones, which poll, a sample
image, home, folder = (Path(argument) for argument in sys.argv[1:4])
method, _, wish = sys.argv[4].partition("-")
PROJECT = hashlib.sha256(os.fsencode(folder / "run")).hexdigest()[:10]
SHOWN = folder.with_name(f"{folder.name}-shown")
SPEC = SandboxSpec(
    id="box",
    root=RootImage(path=image, format="squashfs", digest="sha256:" + "0" * 64),
    writable_dir=folder / "box.layer",
    console=folder / "box.console",
    hostname="boxed",
    limits=Limits(memory_mib=128, disk_mib=16),
    egress=Egress() if wish == "egress" else None,
    mounts=(Mount(source=SHOWN, target="/data"),) if wish == "mounts" else (),
)
OURS = ("qemu", "slirp", "virtiofsd", "python")


def look() -> dict[str, list[str]]:
    """What a sandbox could leave: processes, mounts, files, sockets and records."""
    return {
        "processes": [line for line in descendants(os.getpid()) if any(name in line for name in OURS)],
        "mounts": [str(path) for path in mounts.below(Path("/run/iii-vm"))],
        "files": sorted(
            str(path) for path in folder.rglob("*") if path.name != "box.console" and "/libvirt" not in str(path)
        ),
        "places": sorted(str(path) for path in Path("/run/iii-vm").glob(f"{PROJECT}/vm*/*")),
        "owners": [str((folder / "box.layer" / "data.img").stat().st_uid)] if SPEC.writable_dir.exists() else [],
    }


async def arrange(driver: SandboxDriver) -> Callable[[], Awaitable[None]]:
    """Bring the sandbox to where the call comes; the call."""
    if method == "create":
        return partial(driver.create, SPEC)
    await driver.create(SPEC)
    if method == "start":
        return partial(driver.start, SPEC.id)
    await driver.start(SPEC.id)
    if method == "stop":
        return partial(driver.stop, SPEC.id, grace=0.005)
    return partial(driver.destroy, SPEC.id, keep_writable=False)


async def check(driver: SandboxDriver, step: int) -> bool:
    """One step; whether the call was cut off."""
    before = look()
    cut = await cancelled_at(step, await arrange(driver))
    try:
        phase = (await driver.state(SPEC.id)).phase
    except SandboxNotFound:
        assert method in ("create", "destroy")
    else:
        assert phase is Phase.RUNNING or not look()["processes"], "it does not run, and there is a QEMU"
    await driver.destroy(SPEC.id, keep_writable=False)
    await driver.create(SPEC)  # a deletion that was cut off is completed by this
    await driver.destroy(SPEC.id, keep_writable=False)
    with trio.move_on_after(30):
        while look() != before:  # noqa: ASYNC110 - a console's end is not waited for by anybody
            await trio.sleep(0.02)
    after = look()
    assert after == before, (before, after)
    return cut


async def main() -> None:
    (folder / "run").mkdir(mode=0o700)
    SHOWN.mkdir()
    context = OpenContext(state_dir=folder, runtime_dir=folder / "run", home=home, environ=dict(os.environ))
    async with open_driver(Settings(accelerator="tcg"), context, Accelerator.TCG) as driver:
        await driver.create(SPEC)
        await driver.start(SPEC.id)
        await driver.destroy(SPEC.id, keep_writable=False)
        step, cut = 1, True
        while cut:
            problem = None
            try:
                cut = await check(driver, step)
            except Exception:
                problem = traceback.format_exc()
            print(json.dumps({"step": step, "problem": problem, "cut": cut}), flush=True)
            step += 1 if step < EVERY else step // 2
        await driver.create(SPEC)
        await driver.start(SPEC.id)
        async with agent_of(driver, SPEC.id) as agent:  # after all that, it works
            await run_well(agent, ("/bin/id",))


linux.adopt_orphans()
trio.run(main)
