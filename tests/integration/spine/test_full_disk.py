"""Disks without room: what cannot be done says so and why, the rest goes on, and all of it works once there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from iiitools.registry import Registry

from .conftest import WORKER, IIIProject

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount small disks"),
]


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of two MiB; gives what fills it when it is written to."""
    folder.mkdir(mode=0o700, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "iii-tests", folder], check=True)
    try:
        yield folder / "filler"
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(filler: Path) -> None:
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    assert os.statvfs(filler).f_bavail == 0


def test_a_state_folder_without_room(project: IIIProject, registry: Registry) -> None:
    """What a full disk is full of can be removed, with all that it has written."""
    state = project.folder / ".iii"
    with small_disk(state) as filler:
        project.start()
        project.ok("worker", "add", f"{registry.address}/{WORKER}:1.0")
        fill(filler)
        project.assert_callable()
        project.ok("worker", "restart", WORKER)
        project.assert_callable()
        project.ok("worker", "remove", "-y", WORKER)
        assert WORKER not in project.config.read_text()
        assert not list((state / "writable").iterdir()), "what it wrote is deleted"
        filler.unlink()
        project.ok("worker", "add", f"{registry.address}/{WORKER}:1.0")
        project.assert_callable()
        project.stop()


def test_a_runtime_folder_without_room(project: IIIProject, registry: Registry) -> None:
    with small_disk(project.runtime) as filler:
        fill(filler)
        project.start()
        done = project.run("worker", "add", f"{registry.address}/{WORKER}:1.0")
        assert done.returncode == 1
        assert b"No space left on device" in done.stderr
        assert b"free some disk space" in done.stderr
        assert b"internal error" not in done.stderr
        filler.unlink()
        project.ok("worker", "start", WORKER)
        project.assert_callable()
        project.stop()
