"""Probes the libvirt backend where ``/dev`` is made for the occasion, in a mount namespace of its own.

    unshare --mount python proberunner.py '{"kvm": "real", …}'

``kvm``: ``real`` (this machine's, for everybody), ``private`` (root's alone), ``hollow`` (opens, and is no KVM at all),
``absent``. ``emulator``: the text of a script that stands in for QEMU. ``times``: how often to probe. Prints one JSON
object: results, seconds each, QEMUs left.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import trio

from iii_core.records import OpenContext
from iii_core.sandbox.hostclient import open_sandbox_host
from iii_core.testing.sandbox_harness import descendants

KEPT = ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "fd")
KVM = (10, 232)
NULL = (1, 3)
EMULATOR = Path("/dev/emulator")


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def make_dev(kvm: str) -> None:
    """Cover ``/dev``: the usual nodes, and ``kvm`` as wished."""
    mount("--make-rprivate", "/")
    with tempfile.TemporaryDirectory() as name:
        stage = Path(name)
        mount("-t", "tmpfs", "-o", "mode=0755", "none", name)
        for kept in KEPT:
            source, target = Path("/dev") / kept, stage / kept
            if source.is_symlink():
                target.symlink_to(source.readlink())
                continue
            target.mkdir() if source.is_dir() else target.touch()
            mount("--rbind", str(source), str(target))
        node = stage / "kvm"
        if kvm != "absent":
            os.mknod(node, stat.S_IFCHR, os.makedev(*(NULL if kvm == "hollow" else KVM)))
            node.chmod(0o600 if kvm == "private" else 0o666)
        mount("--move", name, "/dev")


async def main(wish: dict[str, Any]) -> None:
    folder = Path(wish["folder"])
    environ = {**os.environ, **wish.get("environ", {})}
    context = OpenContext(
        state_dir=folder / "state", runtime_dir=folder / "run", home=Path(wish["home"]), environ=environ
    )
    results: list[Any] = []
    seconds: list[float] = []
    left: list[str] = []
    async with open_sandbox_host(context, config={"libvirt": wish.get("settings", {})}) as host:
        for _ in range(wish.get("times", 1)):
            begin = time.monotonic()
            results.append(asdict(await host.probe("libvirt")))
            seconds.append(time.monotonic() - begin)
        left = [line for line in descendants(os.getpid()) if "qemu" in line]
    print(json.dumps({"results": results, "seconds": seconds, "left": left}, default=str))


if __name__ == "__main__":
    wish = json.loads(sys.argv[1])
    make_dev(wish["kvm"])
    if "emulator" in wish:  # where QEMU's own user finds it too
        EMULATOR.write_text(wish["emulator"])
        EMULATOR.chmod(0o755)
        wish["settings"] = {"emulator": str(EMULATOR)}
    trio.run(main, wish)
