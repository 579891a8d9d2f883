"""Runs some of the sandbox conformance kit on the libvirt backend without pytest, for `test_libvirt_ordinary_user`.

usage: kitrunner.py IMAGE HOME FOLDER SETTINGS CHECK…; prints one JSON object per check: its name, and what went wrong
(null: nothing).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from iii_core.host import PluginHost
from iii_core.records import OpenContext, SandboxBackend
from iii_core.sandbox.hostclient import open_sandbox_host
from iii_core.sandbox.port import RootImage, SandboxDriver
from iii_core.testing import sandbox_kit
from iii_core.testing.sandbox_harness import SandboxesUnderTest, agent_of, descendants, run_well, started


async def check_is_ordinary(under_test: SandboxesUnderTest) -> None:
    """No check of the kit: whether this run proves what it says; whose QEMU is, and how it is locked in."""
    assert os.getresuid() == (65534, 65534, 65534)
    async with started(under_test) as (driver, sandbox_id), agent_of(driver, sandbox_id) as agent:
        await run_well(agent, under_test.commands.user_id)
        pid = (await driver.state(sandbox_id)).pid
        status, words = look_at(pid)
        assert "\nUid:\t65534\t65534\t65534\t65534\n" in status
        assert "\nCapPrm:\t0000000000000000\n" in status
        assert "\nSeccomp:\t2\n" in status
        assert words[words.index("-sandbox") + 1].startswith("on,")


def look_at(pid: int | None) -> tuple[str, list[str]]:
    """Status and command line of a process."""
    proc = Path(f"/proc/{pid}")
    return (proc / "status").read_text(encoding="ascii"), (proc / "cmdline").read_text(encoding="utf-8").split("\0")


async def check_ends_with_its_host(under_test: SandboxesUnderTest) -> None:
    """No check of the kit: the daemon ends a domain whose sandbox host was killed, also if nobody else does."""
    async with started(under_test) as (driver, sandbox_id):
        pid = (await driver.state(sandbox_id)).pid
        assert pid is not None
        ended = os.pidfd_open(pid)
        records = under_test.folder.parent / "run" / "processes"
        for record in list(records.glob(f"{pid}.*")):
            record.unlink()  # else the engine would kill it
        hosts = [line for line in descendants(os.getpid()) if line.split()[1].startswith("python")]
        os.kill(int(hosts[0].split()[0]), signal.SIGKILL)
        with trio.fail_after(60):
            await trio.lowlevel.wait_readable(ended)
        os.close(ended)
    async with started(under_test) as (driver, sandbox_id), agent_of(driver, sandbox_id) as agent:
        await run_well(agent, under_test.commands.user_id)


async def check_no_system(under_test: SandboxesUnderTest) -> None:
    """No check of the kit: the machine's libvirtd, whose QEMU could read nothing of ours."""
    try:
        async with under_test.open():
            raise AssertionError("an ordinary user got the machine's libvirtd")
    except Exception as error:
        assert "connection: embed" in str(getattr(error, "hint", "")), error  # noqa: PT017 - no pytest here


def main() -> None:
    image, home, folder = (Path(argument) for argument in sys.argv[1:4])
    settings, names = json.loads(sys.argv[4]), sys.argv[5:]
    checks = {
        check.__name__: check
        for check in (check_is_ordinary, check_ends_with_its_host, check_no_system, *sandbox_kit.CHECKS)
    }
    backend = PluginHost.create(environ={}).collect(SandboxBackend)["libvirt"]
    for number, name in enumerate(names):
        own = folder / f"{number}"
        (own / "run").mkdir(parents=True, mode=0o700)
        (own / "sandboxes").mkdir()
        context = OpenContext(state_dir=own / "state", runtime_dir=own / "run", home=home, environ=dict(os.environ))

        @asynccontextmanager
        async def open_one(context: OpenContext = context) -> AsyncGenerator[SandboxDriver]:
            async with open_sandbox_host(context, config={"libvirt": settings}) as host:
                yield await host.driver("libvirt")

        under_test = SandboxesUnderTest(
            open=open_one,
            image=RootImage(path=image, format="squashfs", digest="sha256:" + "0" * 64),
            folder=own / "sandboxes",
            capabilities=backend.capabilities,
        )
        problem = None
        try:
            trio.run(checks[name], under_test)
            left = [str(path) for path in (own / "run").rglob("*") if path.name != "processes"]
            assert not left, left
        except Exception:
            problem = traceback.format_exc()
        print(json.dumps({"check": name, "problem": problem}), flush=True)


main()
