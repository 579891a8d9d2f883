"""What QEMU itself may do on this machine, looked up in /proc while a guest runs."""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path

import pytest

from iii_core.sandbox.agent import Agent
from iii_core.testing.sandbox_harness import run_well

from .vmkit import ROOTS, Bench, cmdline_of, status_of

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(120)]


async def test_a_guests_qemu(bench: Bench) -> None:
    """One boot, many looks: its command line, its user, capabilities and seccomp; what it sees; what the guest sees."""
    with bench.nothing_remains():
        async with bench.sandbox() as (driver, agent):
            pid = (await driver.state("box")).pid
            assert pid is not None
            look_at_command_line(pid)
            look_at_rights(pid)
            if os.geteuid() == 0:
                look_at_files(pid, bench)
            await look_inside(agent)


def look_at_command_line(pid: int) -> None:
    words = cmdline_of(pid)
    assert words[words.index("-sandbox") + 1] == (
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
    )
    line = " ".join(words)
    for nothing in ("-netdev", "-vnc", "-spice", "virtio-net", "-usb", "-vga", "tcp:", "-gdb"):
        assert nothing not in line, line
    assert "-nodefaults" in words
    assert "-no-user-config" in words


def look_at_rights(pid: int) -> None:
    status = status_of(pid)
    assert status["Seccomp"] == "2"
    assert status["NoNewPrivs"] == "1"
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(status[capabilities], 16) == 0, capabilities
    if os.geteuid() == 0:
        user = pwd.getpwnam("libvirt-qemu")
        assert status["Uid"].split() == [str(user.pw_uid)] * 4
        assert status["Gid"].split() == [str(user.pw_gid)] * 4


def look_at_files(pid: int, bench: Bench) -> None:
    """Its view of the files: in the sandbox host's mounts, which nobody else has, and of those only its own."""
    assert Path(f"/proc/{pid}/ns/mnt").readlink() != Path("/proc/self/ns/mnt").readlink()
    mine = {
        line for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines() if str(ROOTS) in line
    }
    theirs = Path(f"/proc/{pid}/mountinfo").read_text(encoding="utf-8")
    assert not {line for line in mine if any(project in line for project in bench.projects())}
    opened = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
    (place,) = {Path(path).parent for path in opened if path.endswith("/root")}
    for name in ("root", "data", "kernel", "initramfs"):
        assert f"{place}/{name} " in theirs
    assert read_as_qemu(pid, place / "root")
    assert not read_as_qemu(pid, bench.spec().console)
    assert not read_as_qemu(pid, bench.image.path)  # by its path it is out of reach
    assert not read_as_qemu(pid, bench.context.state_dir / "sandbox-host.log")


def read_as_qemu(pid: int, path: Path) -> bool:
    """Whether QEMU's user can read a file where QEMU is."""
    user = pwd.getpwnam("libvirt-qemu")
    who = ("--setuid", str(user.pw_uid), "--setgid", str(user.pw_gid))
    command = ["nsenter", "--target", str(pid), "--mount", *who, "head", "-c1", str(path)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


async def look_inside(agent: Agent) -> None:
    """No network but loopback; the host's name is not known."""
    devices = await run_well(agent, ("/bin/ls", "/sys/class/net"))
    assert devices.split() == ["lo"]
    assert (await run_well(agent, ("/bin/cat", "/proc/sys/kernel/hostname"))).strip() != os.uname().nodename
    disks = (await run_well(agent, ("/bin/ls", "/sys/class/block"))).split()
    assert {name for name in disks if name.startswith("vd")} == {"vda", "vdb"}
