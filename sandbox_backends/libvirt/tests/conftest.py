"""Fixtures of the libvirt backend's own tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from iii_core.records import OpenContext
from iii_core.sandbox.port import RootImage

from .vmkit import HOME, TOOLS, Bench, fetched_kernel, forget


@pytest.fixture(scope="session")
def kernel() -> Path:
    """The folder of the kernel that guests boot: ``vmlinux``, ``vmlinuz``, ``modules/``."""
    return fetched_kernel()


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> RootImage:
    """A squashfs image of busybox."""
    folder = tmp_path_factory.mktemp("image")
    root = folder / "root"
    (root / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for tool in TOOLS.split():
        (root / "bin" / tool).symlink_to("busybox")
    path = folder / "image.squashfs"
    command: list[str | Path] = ["mksquashfs", root, path, "-all-root", "-comp", "lz4", "-quiet", "-no-progress"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return RootImage(path=path, format="squashfs", digest="sha256:" + "0" * 64)


@pytest.fixture
def context(tmp_path: Path, kernel: Path) -> Iterator[OpenContext]:
    with tempfile.TemporaryDirectory(prefix="iii-") as run:  # short: it holds sockets
        yield OpenContext(state_dir=tmp_path / "state", runtime_dir=Path(run), home=HOME, environ=dict(os.environ))
        forget(Path(run))
        forget(tmp_path / "run")  # of hosts that are programs of their own


@pytest.fixture
def bench(context: OpenContext, image: RootImage, tmp_path: Path) -> Bench:
    folder = tmp_path / "sandboxes"
    folder.mkdir()
    return Bench(context, image, folder)
