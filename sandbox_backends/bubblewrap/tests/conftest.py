"""Fixtures of the bubblewrap backend's own tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from iii_core.records import OpenContext
from iii_core.sandbox.port import RootImage

from .bwrapkit import PROGRAMS, Bench


@pytest.fixture(scope="session")
def make_image(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RootImage]:
    """Builds squashfs images of busybox, after ``arrange`` has had its way with the root folder."""

    def make(arrange: Callable[[Path], None] | None = None) -> RootImage:
        folder = tmp_path_factory.mktemp("image")
        root = folder / "root"
        (root / "bin").mkdir(parents=True)
        shutil.copy("/bin/busybox", root / "bin/busybox")
        for name in PROGRAMS.split():
            (root / "bin" / name).symlink_to("busybox")
        if arrange is not None:
            arrange(root)
        path = folder / "image.squashfs"
        command = ["mksquashfs", root, path, "-comp", "lz4", "-quiet", "-no-progress"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return RootImage(path=path, format="squashfs", digest="sha256:" + "0" * 64)

    return make


@pytest.fixture(scope="session")
def image(make_image: Callable[..., RootImage]) -> RootImage:
    return make_image()


@pytest.fixture
def context(tmp_path: Path) -> OpenContext:
    (tmp_path / "run").mkdir(mode=0o700)
    return OpenContext(
        state_dir=tmp_path / "state", runtime_dir=tmp_path / "run", home=tmp_path / "home", environ=dict(os.environ)
    )


@pytest.fixture
def bench(context: OpenContext, image: RootImage, tmp_path: Path) -> Bench:
    folder = tmp_path / "sandboxes"
    folder.mkdir()
    return Bench(context, image, folder)
