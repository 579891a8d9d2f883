"""What somebody has put into the place of a saved state's files: refused, never followed, and never waited for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from iii_sandbox_libvirt.manifest import DATA, FORMAT, MANIFEST, Machine, Manifest, read_manifest
from iii_sandbox_libvirt.policy import Accelerator
from iii_sandbox_libvirt.saveimage import write_revised
from iii_sandbox_libvirt.snapshots import _copy_disk

from iii_core.errors import SnapshotUnusable

MACHINE = Machine(
    image="",
    root="",
    kernel="",
    initramfs="",
    cmdline="",
    vcpus=1,
    memory_mib=64,
    accelerator=Accelerator.TCG,
    processor="",
    qemu="",
    libvirt="",
)
PUT = pytest.mark.parametrize("put", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
Put = Callable[[Path], object]


@PUT
def test_the_memory(tmp_path: Path, put: Put) -> None:
    put(tmp_path / "memory")
    with pytest.raises(OSError, match=r"no regular file|symbolic links"):
        write_revised(tmp_path / "memory", tmp_path / "revised", lambda xml: xml)
    assert not (tmp_path / "revised").exists()


@PUT
def test_the_manifest(tmp_path: Path, put: Put) -> None:
    put(tmp_path / MANIFEST)
    with pytest.raises(SnapshotUnusable, match=r"no regular file|symbolic links"):
        read_manifest(tmp_path)


def test_a_manifest_of_any_size(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(b" " * (1 << 21))
    with pytest.raises(SnapshotUnusable, match="File too large"):
        read_manifest(tmp_path)


@PUT
def test_the_disk(tmp_path: Path, put: Put) -> None:
    put(tmp_path / DATA)
    with pytest.raises(SnapshotUnusable, match=r"no regular file|symbolic links"):
        _copy_disk(tmp_path, tmp_path / "fresh", manifest_of(0))
    assert not (tmp_path / "fresh").exists()


def test_a_disk_of_another_size_is_not_copied(tmp_path: Path) -> None:
    (tmp_path / DATA).write_bytes(b"x")
    with pytest.raises(SnapshotUnusable, match="1 bytes, not 5"):
        _copy_disk(tmp_path, tmp_path / "fresh", manifest_of(5))
    assert not (tmp_path / "fresh").exists()


def manifest_of(data: int) -> Manifest:
    return Manifest(format=FORMAT, machine=MACHINE, memory=(0, 0), data=data)
