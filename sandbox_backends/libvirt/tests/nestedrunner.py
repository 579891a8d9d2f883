"""What `test_libvirt_nested` runs inside an emulated machine that has KVM.

usage: nestedrunner.py HOME IMAGE FOLDER, in a mount namespace of its own; prints one JSON object per step.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import trio
from iii_sandbox_guest import Needs, prepare_boot
from iii_sandbox_guest.boot import ROOT_SERIAL, VSOCK_LINK, VSOCK_PORT
from iii_sandbox_libvirt import probe

from iii_core.host import PluginHost
from iii_core.records import OpenContext, SandboxBackend
from iii_core.sandbox import host as sandbox_host
from iii_core.sandbox.agent import AgentTimeouts, open_agent
from iii_core.sandbox.port import RootImage, SandboxSpec
from iii_core.testing.sandbox_harness import agent_of, run

SLOWNESS = 10  # of a processor that is emulated
CHECK = "lifecycle"
GUEST_CID = 3
BOOT_SECONDS = 120


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


async def boot_over_vsock(home: Path, image: Path) -> None:
    """The other link, which wants a device of the kernel (``/dev/vhost-vsock``); no backend under test here uses it."""
    files = prepare_boot(home, needs=Needs(link=VSOCK_LINK, data_disk=False))
    argv = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-machine", "q35", "-accel", "kvm", "-cpu", "host"]
    argv += ["-m", "192", "-display", "none", "-no-reboot", "-serial", "file:/dev/stderr"]
    argv += ["-kernel", str(files.kernel), "-initrd", str(files.initramfs), "-append", files.cmdline]
    argv += ["-drive", f"if=none,id=root,file={image},format=raw,readonly=on"]
    argv += ["-device", f"virtio-blk-pci,drive=root,serial={ROOT_SERIAL}"]
    argv += ["-device", f"vhost-vsock-pci,guest-cid={GUEST_CID}"]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(partial(trio.run_process, argv, check=False))
        link = trio.SocketStream(await connect_vsock())
        timeouts = AgentTimeouts(boot=BOOT_SECONDS)
        async with open_agent(link, tunnel_ports=[], serve_tunnel=trio.aclose_forcefully, timeouts=timeouts) as agent:
            status, printed = await run(agent, ["/bin/sh", "-c", "head -c 300000 /dev/zero; exit 3"])
            await agent.power_off(1)
        await process.wait()
    tell("vsock", printed=len(printed), code=status.as_shell(), ended=process.returncode)


async def connect_vsock() -> trio.socket.SocketType:
    """The agent listens there; until it does, the kernel refuses, and has no event for it."""
    with trio.fail_after(BOOT_SECONDS):
        while True:
            link = trio.socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
            try:
                await link.connect((GUEST_CID, VSOCK_PORT))
            except OSError:
                link.close()
                await trio.sleep(0.1)
            else:
                return link


def main() -> None:
    home, image, folder = (Path(argument) for argument in sys.argv[1:])
    folder.mkdir(mode=0o700)
    probe.DEADLINES = {accelerator: SLOWNESS * limit for accelerator, limit in probe.DEADLINES.items()}  # type: ignore[misc]
    sandbox_host.PROBE_TIMEOUT *= SLOWNESS
    trio.run(boot_one, home, image, folder)
    check(home, folder)
    trio.run(boot_over_vsock, home, image)


main()
