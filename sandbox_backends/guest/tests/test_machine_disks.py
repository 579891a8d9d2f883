"""What machines keep on their disks, and machines that cannot boot."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import trio
from iii_sandbox_guest import Needs, agent_path, create_data_disk, find_kernel, prepare_boot
from iii_sandbox_guest.boot import GuestMount, render_cmdline
from iii_sandbox_guest.initramfs import render_initramfs
from iii_sandbox_guest.modules import resolve_modules

from iii_core.errors import SandboxError, SandboxRefused
from iii_core.sandbox.agent import Agent

from .agentkit import run as run_program
from .machinekit import HOME, Machine

pytestmark = pytest.mark.timeout(300)  # most tests boot, emulated
WITH_DATA = Needs(data_disk=True)
DISK_SIZE = 1 << 30


async def sh(agent: Agent, script: str) -> str:
    out, err, _ = await run_program(agent, "/bin/sh", "-c", script, env={"PATH": "/bin"})
    return (out + err).decode()


async def run_tool(*argv: str | Path) -> str:
    done = await trio.run_process(argv, stdin=subprocess.DEVNULL, capture_stdout=True, capture_stderr=True)
    return (done.stdout + done.stderr).decode()


def cost(path: Path) -> int:
    return path.stat().st_blocks * 512


async def test_two_machines_of_one_image_keep_what_they_write_to_themselves(root_image: Path, tmp_path: Path) -> None:
    """At the same time, on one image; one of them is powered off and booted again."""
    first = Machine(tmp_path / "first", root_image, tmp_path / "first.disk", needs=WITH_DATA)
    second = Machine(tmp_path / "second", root_image, tmp_path / "second.disk", needs=WITH_DATA)
    assert first.data is not None
    assert second.data is not None
    await create_data_disk(first.data, DISK_SIZE)
    await create_data_disk(second.data, 24 << 20)
    assert cost(first.data) < 2 << 20
    async with first.booted() as one, second.booted() as two:
        assert await sh(one, "echo mine >/workspace/file; echo changed >/etc/hosts; rm /bin/wc; ls /bin/wc") != ""
        assert "No such file" in await sh(two, "cat /workspace/file")
        assert "localhost" in await sh(two, "cat /etc/hosts")
        assert await sh(two, "ls /bin/wc") == "/bin/wc\n"
        assert "No space left" in await sh(two, "dd if=/dev/zero of=/workspace/big bs=1M count=40")
        assert await sh(two, "rm /workspace/big; echo other >/workspace/file; cat /workspace/file") == "other\n"
        assert await sh(one, "dd if=/dev/zero of=/workspace/big bs=1M count=40; sync")
        assert await sh(one, "rm /workspace/big; sync; cat /workspace/file") == "mine\n"
    assert cost(first.data) <= 10 << 20  # what was deleted inside is the host's again
    assert "recover" not in await run_tool("/sbin/e2fsck", "-fn", first.data)
    async with first.booted() as one:
        assert await sh(one, "cat /workspace/file /etc/hosts; ls /bin/wc") == (
            "mine\nchanged\nls: /bin/wc: No such file or directory\n"
        )


async def test_a_disk_is_never_made_anew(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    await create_data_disk(disk, 32 << 20)
    before = disk.read_bytes()
    await create_data_disk(disk, 32 << 20)
    assert disk.read_bytes() == before
    with pytest.raises(SandboxError, match="cannot shrink"):
        await create_data_disk(disk, 31 << 20)
    assert disk.read_bytes() == before


async def test_a_disk_grows_with_what_is_on_it(tmp_path: Path) -> None:
    disk, content = tmp_path / "disk", tmp_path / "content"
    content.write_text("kept")
    await create_data_disk(disk, 32 << 20)
    await debugfs(disk, f"write {content} mark")
    await create_data_disk(disk, 64 << 20)
    assert disk.stat().st_size == 64 << 20
    assert "kept" in await debugfs(disk, "cat mark")
    assert re.search(r"Block count: +65536\n", await debugfs(disk, "stats"))
    assert "ERRORS" not in await run_tool("/usr/sbin/e2fsck", "-f", "-n", disk)


async def test_a_growth_that_was_cut_off_is_finished(tmp_path: Path) -> None:
    """Power failed after the file grew and before its file system did."""
    disk = tmp_path / "disk"
    await create_data_disk(disk, 32 << 20)
    os.truncate(disk, 64 << 20)
    await create_data_disk(disk, 64 << 20)
    assert re.search(r"Block count: +65536\n", await debugfs(disk, "stats"))


async def test_what_is_no_disk_is_said_to_be_damaged(tmp_path: Path) -> None:
    for content in (b"", bytes(64 << 20)):
        (tmp_path / "disk").write_bytes(content)
        with pytest.raises(SandboxError, match="is damaged"):
            await create_data_disk(tmp_path / "disk", 64 << 20)
        assert (tmp_path / "disk").read_bytes() == content


async def test_a_growth_that_fails_leaves_the_size(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    await create_data_disk(disk, 256 << 20)
    with pytest.raises(SandboxError, match=r"cannot (let|grow)"):
        await create_data_disk(disk, 4 << 40)  # more than a file system can come to that began so small
    assert disk.stat().st_size == 256 << 20
    with pytest.raises(SandboxRefused, match="cannot grow to"):
        await create_data_disk(disk, 1 << 62)
    assert disk.stat().st_size == 256 << 20
    await create_data_disk(disk, 256 << 20)


async def test_a_superblock_of_nonsense_is_damage(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    await create_data_disk(disk, 32 << 20)
    with disk.open("r+b") as file:
        file.seek(1048)
        file.write(b"\xff" * 4)
    with pytest.raises(SandboxError, match="is damaged"):
        await create_data_disk(disk, 32 << 20)


async def debugfs(disk: Path, command: str) -> str:
    return await run_tool("/usr/sbin/debugfs", "-w", "-R", command, disk)


async def fails(machine: Machine) -> str:
    console = await machine.runs_to_its_end()
    return next(line for line in console.splitlines() if "cannot boot" in line)


async def test_a_machine_without_its_writable_disk_says_so(root_image: Path, tmp_path: Path) -> None:
    said = await fails(Machine(tmp_path / "machine", root_image, needs=WITH_DATA))
    assert said == (
        "iii-agent: cannot boot: the writable disk: there is no disk with the serial number iii-data"
        " (there are: vda=iii-root)"
    )


async def test_a_writable_disk_without_a_file_system_says_so(root_image: Path, tmp_path: Path) -> None:
    blank = tmp_path / "blank"
    blank.write_bytes(bytes(1 << 20))
    said = await fails(Machine(tmp_path / "machine", root_image, blank, needs=WITH_DATA))
    assert said == "iii-agent: cannot boot: mounting the writable disk (/dev/vdb as ext4): Invalid argument"


async def test_a_damaged_root_image_says_so(root_image: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    await run_tool("cp", root_image, damaged)
    with damaged.open("r+b") as file:
        file.write(b"\xff" * 4096)
    said = await fails(Machine(tmp_path / "machine", damaged))
    assert said == "iii-agent: cannot boot: mounting the root image (/dev/vda as squashfs): Invalid argument"


async def test_a_command_line_that_cannot_work_says_so(root_image: Path, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "machine", root_image)
    files = prepare_boot(HOME, needs=machine.needs)
    machine.files = dataclasses.replace(files, cmdline=f"{files.cmdline} iii.link=tcp:1")
    said = "the kernel command line is wrong or lacks something: iii.link=tcp:1"
    assert await fails(machine) == f"iii-agent: cannot boot: {said}"


async def test_a_module_that_is_missing_or_does_not_fit_says_so(root_image: Path, tmp_path: Path) -> None:
    kernel = find_kernel(HOME)
    machine = Machine(tmp_path / "machine", root_image)
    modules = [(f"{module.name}.ko", module.read()) for module in resolve_modules(kernel.modules, ["virtio_pci"])]
    initramfs = tmp_path / "initramfs"
    initramfs.write_bytes(render_initramfs(agent_path().read_bytes(), [*modules, ("bad.ko", b"\x7fELF no module")]))
    files = prepare_boot(HOME, needs=machine.needs)
    machine.files = dataclasses.replace(files, initramfs=initramfs, cmdline=render_cmdline(machine.needs))
    assert await fails(machine) == "iii-agent: cannot boot: loading the kernel module bad.ko: Exec format error"


async def test_a_host_s_folder_that_is_missing_says_so(root_image: Path, tmp_path: Path) -> None:
    needs = Needs(data_disk=False, mounts=(GuestMount(tag="pictures", target="/data/a b", writable=False),))
    said = await fails(Machine(tmp_path / "machine", root_image, needs=needs))
    assert said == ("iii-agent: cannot boot: mounting the host's folder pictures on /data/a b: Invalid argument")


@pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="mkfs.erofs is not installed")
async def test_erofs_images_boot_too(root_image: Path, tmp_path: Path) -> None:
    image = tmp_path / "root.erofs"
    await run_tool("mkfs.erofs", image, root_image.parent / "tree")
    needs = Needs(data_disk=False, image_format="erofs")
    async with Machine(tmp_path / "machine", image, needs=needs).booted() as agent:
        assert await sh(agent, "echo fine") == "fine\n"
