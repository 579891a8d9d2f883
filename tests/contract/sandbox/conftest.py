"""A tiny image and open backends for the sandbox contract tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from iii_sandbox_guest import fetch_kernel

from iii_core.records import OpenContext
from iii_core.sandbox.port import RootImage

BUSYBOX = Path("/bin/busybox")
PROGRAMS = ("sh", "cat", "date", "id", "sleep", "dd", "mount", "kill", "ps", "ip", "stat", "mkdir", "ls", "mknod", "nc")


@pytest.fixture(scope="session")
def tiny_image(tmp_path_factory: pytest.TempPathFactory) -> RootImage:
    """A squashfs image of busybox, readable for everybody."""
    folder = tmp_path_factory.mktemp("image")
    root = folder / "root"
    (root / "bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin/busybox")
    for name in PROGRAMS:
        (root / "bin" / name).symlink_to("busybox")
    path = folder / "tiny.squashfs"
    subprocess.run(
        ["mksquashfs", root, path, "-all-root", "-comp", "lz4", "-quiet", "-no-progress"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return RootImage(path=path, format="squashfs", digest="sha256:" + "0" * 64)


@pytest.fixture(scope="session")
def guest_kernel_home() -> Path:
    """An ``$III_HOME`` with a kernel for virtual machines, fetched at the first use."""
    home = Path(__file__).parents[3] / "build" / "guest"
    trio.run(fetch_kernel, home)
    return home


@pytest.fixture
def context(tmp_path: Path) -> Iterator[OpenContext]:
    """Private folders for a sandbox host."""
    with tempfile.TemporaryDirectory(prefix="iii-") as run:  # short: it holds sockets
        yield OpenContext(
            state_dir=tmp_path / "state", runtime_dir=Path(run), home=tmp_path / "home", environ=dict(os.environ)
        )
