"""What QEMU itself may do on this machine, looked up in /proc while a guest runs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from iii_sandbox_libvirt import leases

from iii_core.sandbox.agent import Agent
from iii_core.sandbox.ids import MACHINE_ID_COUNT, MACHINE_IDS
from iii_core.testing.sandbox_harness import run_well

from .vmkit import ROOTS, Bench, agent_of, cmdline_of, status_of

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(300)]


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


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's QEMUs are all that user")
async def test_two_guests_qemus_are_two_users(bench: Bench) -> None:
    """Who breaks out of one has no right over the other, nor over a guest that comes later."""
    specs = [bench.spec(name) for name in ("one", "two")]
    async with bench.driver() as driver:
        users: list[int] = []
        for spec in specs:
            await driver.create(spec)
            await driver.start(spec.id)
            users.append(uid_of((await driver.state(spec.id)).pid or 0))
        assert set(users) <= leases._in_use(), "that these ids are in use cannot be told"
        one, two = users
        assert one != two
        pid = (await driver.state("one")).pid or 0
        place, others = place_of(pid), place_of((await driver.state("two")).pid or 0)
        assert read_as(one, pid, place / "data")
        assert read_as(two, pid, others / "data")
        for path in (others / "data", others / "root", others):
            assert not read_as(one, pid, path), path
        for folder in (bench.folder, specs[1].writable_dir):
            assert not read_as(one, pid, folder / "data.img")
        look_at_monitors(bench, pid, users)
        await driver.stop("one", grace=0)
        disk = specs[0].writable_dir / "data.img"
        assert disk.stat().st_uid == 0, "who gets that id next must not own the disk"
        os.chown(disk, two, two)  # as if the sandbox host had been killed
        await driver.start("one")
        async with agent_of(driver, "one") as agent:
            await run_well(agent, ("/bin/touch", "/workspace/x"))
        again = uid_of((await driver.state("one")).pid or 0)
        assert disk.stat().st_uid == again
        assert again != two


def look_at_monitors(bench: Bench, pid: int, users: list[int]) -> None:
    """Whoever speaks to a QEMU's monitor can have it do anything."""
    (project,) = bench.projects()
    monitors = sorted((ROOTS / project / "lv").rglob("monitor.sock"))
    assert len(monitors) == 2
    assert not [path for path in monitors for user in users if may(user, pid, "-w", path)]
    assert may(users[0], pid, "-w", place_of(pid) / "link"), "or else this proves nothing"


def uid_of(pid: int) -> int:
    return int(status_of(pid)["Uid"].split()[0])


def place_of(pid: int) -> Path:
    opened = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
    (place,) = {Path(path).parent for path in opened if path.endswith("/root")}
    return place


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
        assert MACHINE_IDS <= uid_of(pid) < MACHINE_IDS + MACHINE_ID_COUNT
        assert status["Uid"].split() == [str(uid_of(pid))] * 4
        assert status["Gid"].split() == [str(uid_of(pid))] * 4
        assert set(status["Groups"].split()) <= {str(uid_of(pid))}


def look_at_files(pid: int, bench: Bench) -> None:
    """Its view of the files: in the sandbox host's mounts, which nobody else has, and of those only its own."""
    assert Path(f"/proc/{pid}/ns/mnt").readlink() != Path("/proc/self/ns/mnt").readlink()
    mine = {
        line for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines() if str(ROOTS) in line
    }
    theirs = Path(f"/proc/{pid}/mountinfo").read_text(encoding="utf-8")
    assert not {line for line in mine if any(project in line for project in bench.projects())}
    place = place_of(pid)
    for name in ("root", "data", "kernel", "initramfs"):
        assert f"{place}/{name} " in theirs
    assert read_as(uid_of(pid), pid, place / "root")
    assert not read_as(uid_of(pid), pid, bench.spec().console)
    assert not read_as(uid_of(pid), pid, bench.image.path)  # by its path it is out of reach
    assert not read_as(uid_of(pid), pid, bench.context.state_dir / "sandbox-host.log")


def read_as(user: int, pid: int, path: Path) -> bool:
    """Whether a user can read a file where a QEMU is."""
    return succeeds(user, pid, "head", "-c1", str(path))


def may(user: int, pid: int, how: str, path: Path) -> bool:
    """As ``test``, which asks the kernel."""
    return succeeds(user, pid, "test", how, str(path))


def succeeds(user: int, pid: int, *words: str) -> bool:
    who = ("--setuid", str(user), "--setgid", str(user))
    command = ["nsenter", "--target", str(pid), "--mount", *who, *words]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


async def look_inside(agent: Agent) -> None:
    """No network but loopback; the host's name is not known."""
    devices = await run_well(agent, ("/bin/ls", "/sys/class/net"))
    assert devices.split() == ["lo"]
    assert (await run_well(agent, ("/bin/cat", "/proc/sys/kernel/hostname"))).strip() != os.uname().nodename
    disks = (await run_well(agent, ("/bin/ls", "/sys/class/block"))).split()
    assert {name for name in disks if name.startswith("vd")} == {"vda", "vdb"}
