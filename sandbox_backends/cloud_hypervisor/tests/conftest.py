"""Fixtures of the cloud-hypervisor backend's tests."""

from __future__ import annotations

import json
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

from .fake.description import Description
from .vmmkit import Bench

PROGRAMS = ("sh", "cat", "id", "sleep", "dd", "kill", "ps", "mkdir", "ls")


@pytest.fixture(scope="session")
def guest_home() -> Path:
    """An ``$III_HOME`` with a kernel for virtual machines, fetched at the first use."""
    home = Path(__file__).parents[3] / "build" / "guest"
    trio.run(fetch_kernel, home)
    return home


@pytest.fixture(scope="session")
def description() -> Description:
    return Description.load()


@pytest.fixture(scope="session")
def description_file(description: Description, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As JSON, which a new process reads faster."""
    path = tmp_path_factory.mktemp("description") / "openapi.json"
    path.write_text(json.dumps(description.document))
    return path


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> RootImage:
    """A squashfs image of busybox."""
    folder = tmp_path_factory.mktemp("image")
    root = folder / "root"
    (root / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for name in PROGRAMS:
        (root / "bin" / name).symlink_to("busybox")
    path = folder / "tiny.squashfs"
    command = ["mksquashfs", root, path, "-all-root", "-comp", "lz4", "-quiet", "-no-progress"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return RootImage(path=path, format="squashfs", digest="sha256:" + "0" * 64)


@pytest.fixture
def context(guest_home: Path, tmp_path: Path) -> Iterator[OpenContext]:
    home = tmp_path / "home"
    home.mkdir()
    (home / "kernels").symlink_to(guest_home / "kernels")
    with tempfile.TemporaryDirectory(prefix="iii-") as run:  # short: it holds sockets
        yield OpenContext(state_dir=tmp_path / "state", runtime_dir=Path(run), home=home, environ=dict(os.environ))


@pytest.fixture
def bench(context: OpenContext, description_file: Path, image: RootImage, tmp_path: Path) -> Iterator[Bench]:
    """Nothing that is not as described may be sent or answered in any test."""
    folder = tmp_path / "sandboxes"
    folder.mkdir()
    bench = Bench(context=context, description=description_file, image=image, folder=folder)
    yield bench
    bench.calls()
