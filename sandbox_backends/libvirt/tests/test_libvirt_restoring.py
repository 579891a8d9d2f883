"""A restore whose process is killed leaves nothing behind that the next start does not put right."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from iii_sandbox_libvirt.machine import LibvirtLauncher
from iii_sandbox_libvirt.places import Places
from iii_sandbox_libvirt.policy import Accelerator, Settings
from iii_sandbox_libvirt.restoring import replaced

from iii_core.records import OpenContext
from iii_core.sandbox.host_processes import ProcessRecords
from iii_core.sandbox.port import Limits, RootImage, SandboxSpec

RESTORE = """
import os, signal, sys
from pathlib import Path
from iii_sandbox_libvirt.restoring import removed, replaced

folder, last = Path(sys.argv[1]), sys.argv[2]

def reached(step):
    if step == last:
        os.kill(os.getpid(), signal.SIGKILL)

disk = folder / "data.img"
with replaced(disk) as fresh:
    reached("linked")
    fresh.write_bytes(b"half")
    reached("copying")
    fresh.write_bytes(b"saved" + bytes(64 << 20))
    reached("copied")
    fresh.replace(disk)
    reached("replaced")
    with removed(folder / "memory") as memory:
        memory.write_bytes(b"SECRET=1")
        reached("remembered")
    reached("restored")
"""
STEPS = ("linked", "copying", "copied", "replaced", "remembered", "restored")


def spec_in(folder: Path) -> SandboxSpec:
    root = RootImage(path=folder / "none", format="squashfs", digest="sha256:" + "0" * 64)
    layer, console = folder / "layer", folder / "console"
    return SandboxSpec(
        id="box", root=root, writable_dir=layer, console=console, hostname="box", limits=Limits(disk_mib=64)
    )


def launcher_in(folder: Path, nursery: trio.Nursery) -> LibvirtLauncher:
    return LibvirtLauncher(
        settings=Settings(),
        context=OpenContext(state_dir=folder, runtime_dir=folder, home=folder, environ=dict(os.environ)),
        emulator=Path("/none"),
        accelerator=Accelerator.TCG,
        connection=cast("Any", None),  # nothing is begun
        places=Places(folder, None, binds=False, purpose="vm"),
        records=ProcessRecords(folder / "processes"),
        nursery=nursery,
    )


def mark(disk: Path) -> None:
    """In the boot block, which ext4 leaves alone."""
    with disk.open("r+b") as file:
        file.write(b"today")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("step", STEPS)
async def test_killed(tmp_path: Path, step: str) -> None:
    """Nobody heard that it had succeeded: the files of today are in use again, and no memory is left."""
    spec = spec_in(tmp_path)
    disk = spec.writable_dir / "data.img"
    async with trio.open_nursery() as nursery:
        launcher = launcher_in(tmp_path, nursery)
        await launcher.prepare(spec)
        mark(disk)
        whole = disk.stat()
        command = [sys.executable, "-c", RESTORE, str(spec.writable_dir), step]
        killed = await trio.run_process(command, check=False, stdin=subprocess.DEVNULL)
        assert killed.returncode == -signal.SIGKILL
        assert names_in(spec.writable_dir) != ["data.img"]
        for _ in range(2):
            await launcher.prepare(spec)
            assert names_in(spec.writable_dir) == ["data.img"]
            assert disk.stat().st_ino == whole.st_ino
            assert disk.read_bytes()[:5] == b"today"


async def test_putting_right_was_cut_off_too(tmp_path: Path) -> None:
    """Between rename(2) and what follows; and one whose restore had not begun at all is left alone."""
    spec = spec_in(tmp_path)
    disk = spec.writable_dir / "data.img"
    async with trio.open_nursery() as nursery:
        launcher = launcher_in(tmp_path, nursery)
        await launcher.prepare(spec)
        mark(disk)
        (spec.writable_dir / "data.img.new").write_bytes(b"half")
        await launcher.prepare(spec)
        assert names_in(spec.writable_dir) == ["data.img"]
        disk.rename(spec.writable_dir / "data.img.before")
        (spec.writable_dir / "memory").write_bytes(b"SECRET=1")
        await launcher.prepare(spec)
        assert names_in(spec.writable_dir) == ["data.img"]
        assert disk.read_bytes()[:5] == b"today"


@pytest.mark.parametrize("swapped", [False, True])
def test_failed(tmp_path: Path, swapped: bool) -> None:
    disk = tmp_path / "data.img"
    disk.write_bytes(b"today")

    def fail() -> None:
        with replaced(disk) as fresh:
            fresh.write_bytes(b"saved")
            if swapped:
                fresh.replace(disk)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (names_in(tmp_path), disk.read_bytes()) == (["data.img"], b"today")
