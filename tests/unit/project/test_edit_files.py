"""config.yaml and iii.lock are written together, on full disks too, and what is no file is not waited for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from iii_core.errors import ConfigError, ConfigIoError
from iii_core.project.config import load_config
from iii_core.project.edit import edit_config, put_worker, remove_worker
from iii_core.project.guard import project_lock
from iii_core.project.locate import Project, locate_project
from iii_core.project.lock import Lock, LockEntry, load_lock, save_lock, with_image, without_worker


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return locate_project(cwd=tmp_path, environ={"HOME": str(tmp_path)})


III = Path(sys.executable).with_name("iii")


def fill(disk: Path) -> None:
    """Leave no block, and no inode."""
    with suppress(OSError), (disk / f"filler-{os.urandom(4).hex()}").open("wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 4096)
    with suppress(OSError):
        for number in range(100):
            (disk / f"inode-{number}").touch()


class TestPinnedTogether:
    def test_a_lock_that_cannot_be_written_leaves_the_configuration_as_it_was(self, project: Project) -> None:
        project.lock_path.mkdir()  # not even a file
        project.config_path.write_bytes(before := b"\xef\xbb\xbfworkers: []\n")
        for _ in range(2):
            with pytest.raises(ConfigIoError):
                edit_config(project, lambda text: put_worker(text, {"name": "x"}), pin=lambda lock: lock)
            assert project.config_path.read_bytes() == before

    def test_a_lock_that_is_refused_leaves_the_configuration_as_it_was(self, project: Project) -> None:
        def bad(lock: Lock) -> Lock:
            return Lock(workers={"x": LockEntry(version="1", kind="image", source={"image": "unpinned"})})

        for existing in (None, "workers: []\n"):
            if existing is not None:
                project.config_path.write_text(existing)
            with pytest.raises(ConfigError, match="not pinned by digest"):
                edit_config(project, lambda text: put_worker(text, {"name": "x"}), pin=bad)
            assert (project.config_path.read_text() if project.config_path.exists() else None) == existing

    def test_whether_the_lock_changed_is_told(self, project: Project) -> None:
        def same(lock: Lock) -> Lock:
            return lock

        assert not edit_config(project, lambda text: put_worker(text, {"name": "x"}), pin=same).lock_changed
        assert not project.lock_path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
class TestFullDisk:
    @pytest.fixture
    def disk(self, tmp_path: Path) -> Iterator[Path]:
        folder = tmp_path / "disk"
        folder.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=40", "iii-tests", folder], check=True, timeout=10
        )
        yield folder
        subprocess.run(["umount", "--lazy", folder], check=True, timeout=10)

    @pytest.fixture
    def full(self, disk: Path) -> Project:
        """A project with two workers on a disk without a free block."""
        project = locate_project(cwd=disk, environ={"III_HOME": str(disk)})
        project.config_path.write_text("workers:\n- {name: a, image: r/a}\n- {name: b, image: r/b}\n")
        save_lock(project, with_image(Lock(), "a", "r/a:1", f"r/a:1@sha256:{'a' * 64}", None))
        with project_lock(project):
            pass
        (project.state_dir / "lock").write_bytes(b"")
        fill(disk)
        return project

    def test_removing_needs_no_space(self, full: Project) -> None:
        edited = edit_config(full, lambda text: remove_worker(text, "a"), pin=lambda lock: without_worker(lock, "a"))
        assert edited.lock_changed
        assert full.config_path.read_text() == "workers:\n- {name: b, image: r/b}\n"
        assert load_lock(full) == Lock()

    def test_the_command_removes_and_refuses_in_words(self, full: Project) -> None:
        def iii(*args: str) -> subprocess.CompletedProcess[str]:
            environ = {**os.environ, "III_HOME": str(full.root), "XDG_RUNTIME_DIR": "", "NO_COLOR": "1"}
            return subprocess.run([III, *args], cwd=full.root, env=environ, capture_output=True, text=True, timeout=30)

        removed = iii("worker", "remove", "a")
        assert (removed.returncode, removed.stderr) == (0, "  ✓ a removed from config.yaml and iii.lock\n")
        for path in full.state_dir.iterdir():
            path.unlink()
        full.state_dir.rmdir()
        fill(full.root)
        refused = iii("worker", "remove", "b")
        assert refused.returncode == 1
        assert "error: [W130] cannot " in refused.stderr
        assert "hint: free some disk space" in refused.stderr

    def test_adding_is_refused_with_a_hint_and_changes_nothing(self, full: Project) -> None:
        before = full.config_path.read_bytes()
        with pytest.raises(ConfigIoError) as caught:
            edit_config(full, lambda text: put_worker(text, {"name": "new"}))
        assert caught.value.hint == "free some disk space"
        assert full.config_path.read_bytes() == before
        assert not [path for path in full.root.iterdir() if ".tmp." in path.name]


@pytest.mark.parametrize("name", ["config.yaml", "iii.lock"])
def test_what_is_no_file_is_not_waited_for(project: Project, name: str) -> None:
    os.mkfifo(project.root / name)
    with pytest.raises(ConfigIoError, match="not a regular file"):
        (load_config if name == "config.yaml" else load_lock)(project)
