"""Is an engine with one guest, until it is killed; for `test_libvirt_dead_man`.

usage: enginerunner.py IMAGE HOME FOLDER DEAD_MAN; prints the process ids of the sandbox host and of QEMU.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import trio

from iii_core.records import OpenContext
from iii_core.sandbox.agent import AgentTimeouts, open_agent
from iii_core.sandbox.hostclient import open_sandbox_host
from iii_core.sandbox.port import Limits, RootImage, SandboxSpec
from iii_core.testing.sandbox_harness import descendants


async def main() -> None:
    image, home, folder = (Path(argument) for argument in sys.argv[1:4])
    context = OpenContext(state_dir=folder / "state", runtime_dir=folder / "run", home=home, environ=dict(os.environ))
    spec = SandboxSpec(
        id="box",
        root=RootImage(path=image, format="squashfs", digest="sha256:" + "0" * 64),
        writable_dir=folder / "box.layer",
        console=folder / "box.console",
        hostname="boxed",
        limits=Limits(memory_mib=128, disk_mib=16),
    )
    async with open_sandbox_host(context, config={"libvirt": {"accelerator": "tcg"}}) as host:
        driver = await host.driver("libvirt")
        await driver.create(spec)
        await driver.start("box")
        link = await driver.link("box")
        link.setblocking(False)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(link))
        timeouts = AgentTimeouts(dead_man=float(sys.argv[4]), ping=1)
        async with open_agent(stream, tunnel_ports=[], serve_tunnel=trio.aclose_forcefully, timeouts=timeouts):
            lines = [line.split(maxsplit=1) for line in descendants(os.getpid())]
            found = {name[:6]: int(pid) for pid, name in lines}
            print(json.dumps({"host": found["python"], "qemu": found["qemu-s"]}), flush=True)
            await trio.sleep_forever()


trio.run(main)
