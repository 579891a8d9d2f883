"""Where things are, atomic writes, the project lock, and the engine's record."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iii_core.errors import ConfigIoError, EngineError, LockBusy
from iii_core.project.context import provider_context
from iii_core.project.edit import Edited, edit_config, put_worker
from iii_core.project.files import write_atomic
from iii_core.project.guard import project_lock
from iii_core.project.locate import (
    SOCKET_PATH_LIMIT,
    Project,
    control_socket,
    last_runtime_base,
    locate_project,
    process_start_time,
    read_record,
    remove_record,
    runtime_dir,
    write_record,
)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return locate_project(cwd=tmp_path, environ={"HOME": str(tmp_path)})


class TestLocate:
    def test_which_file(self, tmp_path: Path) -> None:
        env = {"III_CONFIG_PATH": "env/c.yaml"}
        assert locate_project(cwd=tmp_path, environ={}).config_path == tmp_path / "config.yaml"
        assert locate_project(cwd=tmp_path, environ=env).config_path == tmp_path / "env/c.yaml"
        assert locate_project("x/y.yaml", cwd=tmp_path, environ=env).config_path == tmp_path / "x/y.yaml"
        assert locate_project("/etc/i.yaml", cwd=tmp_path, environ=env).root == Path("/etc")

    def test_every_way_to_a_folder_is_one_project(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        found = {locate_project(way, cwd=tmp_path, environ={}).root for way in ("real/c", "link/c", "real/../link/c")}
        assert found == {tmp_path / "real"}

    def test_home(self, tmp_path: Path) -> None:
        assert locate_project(cwd=tmp_path, environ={"III_HOME": "/h"}).home == Path("/h")
        assert locate_project(cwd=tmp_path, environ={}).home == Path("~/.iii").expanduser()
        assert locate_project(cwd=tmp_path, environ={"III_HOME": "rel"}).home == tmp_path / "rel"

    def test_names(self, project: Project, tmp_path: Path) -> None:
        assert project.state_dir == tmp_path / ".iii"
        assert project.lock_path == tmp_path / "iii.lock"
        assert project.logs_dir("w") == tmp_path / ".iii/logs/w"

    def test_the_environment_is_not_shown(self, tmp_path: Path) -> None:
        assert "canary" not in repr(locate_project(cwd=tmp_path, environ={"TOKEN": "canary"}))


class TestRuntimeFolder:
    @pytest.fixture
    def base(self) -> Iterator[Path]:
        folder = Path(f"/tmp/iii-rt-{os.getpid()}")
        folder.mkdir(mode=0o700)
        yield folder
        subprocess.run(["rm", "-rf", str(folder)], check=True)

    @pytest.fixture(autouse=True)
    def last(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        """The last resort: one that is removed."""
        folder = Path(f"/tmp/iii-rt-{os.getpid()}-last")
        monkeypatch.setattr("iii_core.project.locate.last_runtime_base", lambda: folder)
        yield folder
        subprocess.run(["rm", "-rf", str(folder)], check=True)

    def at(self, tmp_path: Path, runtime: Path | str) -> Path:
        return runtime_dir(locate_project(cwd=tmp_path, environ={"XDG_RUNTIME_DIR": str(runtime)}))

    def test_private_and_short(self, tmp_path: Path, base: Path) -> None:
        folder = self.at(tmp_path, base)
        assert folder.parent == base / "iii"
        assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
        assert self.at(tmp_path, base) == folder
        assert len(os.fsencode(folder / ("x" * 32))) <= SOCKET_PATH_LIMIT

    def test_two_projects_have_two(self, tmp_path: Path, base: Path) -> None:
        (tmp_path / "a").mkdir()
        assert self.at(tmp_path, base) != self.at(tmp_path / "a", base)

    def test_an_open_one_is_closed(self, tmp_path: Path, base: Path) -> None:
        (base / "iii").mkdir(mode=0o755)
        assert stat.S_IMODE(self.at(tmp_path, base).parent.stat().st_mode) == 0o700

    def test_the_last_resort_is_the_users_own(self) -> None:
        assert last_runtime_base() == Path(f"/tmp/iii-{os.geteuid()}")

    def test_places_that_will_not_do(self, tmp_path: Path, base: Path) -> None:
        fallback = self.at(tmp_path, "/nonexistent")
        long = base / ("x" * 90)
        long.mkdir(mode=0o700)
        (base / "file").touch()
        (base / "link").symlink_to(base)
        for place in (long, base / "file", base / "link", "relative", ""):
            assert self.at(tmp_path, place) == fallback

    def test_links_are_refused(self, tmp_path: Path, base: Path) -> None:
        (base / "iii").symlink_to("/tmp")
        assert self.at(tmp_path, base).parent != base / "iii"

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs to give a folder away")
    def test_folders_of_others_are_refused(self, tmp_path: Path, base: Path) -> None:
        folder = self.at(tmp_path, base)
        os.chown(folder, 65534, 65534)
        assert self.at(tmp_path, base) != folder

    def test_no_place_at_all(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("iii_core.project.locate._runtime_bases", lambda _: iter([Path("/proc/none")]))
        with pytest.raises(EngineError, match="no private folder for sockets"):
            self.at(tmp_path, "")

    def test_what_providers_get(self, tmp_path: Path, base: Path) -> None:
        project = locate_project(cwd=tmp_path, environ={"XDG_RUNTIME_DIR": str(base)})
        context = provider_context(project, "oci")
        assert context.state_dir == tmp_path / ".iii/state/oci"
        assert context.runtime_dir.is_dir()
        assert stat.S_IMODE(context.runtime_dir.stat().st_mode) == 0o700
        assert control_socket(project).parent == context.runtime_dir.parent


class TestRecord:
    def test_round_trip(self, project: Project) -> None:
        assert read_record(project) is None
        record = write_record(project, control=Path("/r/control.sock"), port=49134)
        assert read_record(project) == record
        assert record.pid == os.getpid()
        assert stat.S_IMODE(project.record_path.stat().st_mode) == 0o600
        remove_record(project)
        assert read_record(project) is None
        remove_record(project)

    def test_a_later_process_of_the_same_id_is_another(self, project: Project) -> None:
        record = write_record(project, control=Path("/c"), port=1)
        data = {"pid": record.pid, "start_time": record.start_time - 1, "control": "/c", "port": 1}
        project.record_path.write_text(json.dumps(data))
        assert read_record(project) is None

    @pytest.mark.parametrize(
        "text",
        ["", "{", "[]", "null", "{}", '{"pid": "1", "start_time": 1, "control": "/c", "port": 1}', "[" * 100_000,
         '{"pid": 1, "start_time": true, "control": "/c", "port": 1}',
         '{"pid": -1, "start_time": 1, "control": "/c", "port": 1}',
         '{"pid": 1, "start_time": 1, "control": 5, "port": 1}', "\xff"],
    )  # fmt: skip
    def test_nonsense_is_no_engine(self, project: Project, text: str) -> None:
        project.state_dir.mkdir()
        project.record_path.write_text(text)
        assert read_record(project) is None

    def test_start_times(self) -> None:
        assert process_start_time(os.getpid())
        assert process_start_time(2**22 + 1) is None
        child = subprocess.Popen([sys.executable, "-c", ""])
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert process_start_time(child.pid) is None  # a zombie
        child.wait()


class TestWriteAtomic:
    def test_modes(self, tmp_path: Path) -> None:
        path = tmp_path / "f"
        write_atomic(path, b"one", mode=0o600)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.chmod(0o640)
        write_atomic(path, b"two")
        assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"two", 0o640)
        assert names_in(tmp_path) == ["f"]

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs to give a file away")
    def test_owner(self, tmp_path: Path) -> None:
        path = tmp_path / "f"
        path.touch()
        os.chown(path, 1234, 1235)
        write_atomic(path, b"x")
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 1235)

    def test_links_keep_pointing(self, tmp_path: Path) -> None:
        (tmp_path / "shared").mkdir()
        (tmp_path / "shared/real").write_bytes(b"old")
        (tmp_path / "link").symlink_to("shared/real")
        write_atomic(tmp_path / "link", b"new")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "shared/real").read_bytes() == b"new"

    def test_what_is_no_file(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "loop").symlink_to("loop")
        os.mkfifo(tmp_path / "fifo")
        for name in ("folder", "loop", "fifo", "none/f"):
            with pytest.raises(ConfigIoError) as caught:
                write_atomic(tmp_path / name, b"x")
            assert name in caught.value.message
        assert names_in(tmp_path) == ["fifo", "folder", "loop"]

    @pytest.mark.parametrize("call", ["fsync", "fchmod"])
    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
    def test_faults_leave_the_old_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
    ) -> None:
        path = tmp_path / "f"
        path.write_bytes(b"old")

        def fail(*_: Any) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(f"iii_core.project.files.os.{call}", fail)
        with pytest.raises(ConfigIoError) as caught:
            write_atomic(path, b"new")
        assert os.strerror(number) in caught.value.message
        assert (caught.value.hint is not None) == (number == errno.ENOSPC)
        assert path.read_bytes() == b"old"
        assert names_in(tmp_path) == ["f"]

    def test_a_full_disk(self, tmp_path: Path) -> None:
        """A real one: a file system of 64 KiB."""
        script = """
import sys
from pathlib import Path
from iii_core.errors import ConfigIoError
from iii_core.project.files import write_atomic
path = Path(sys.argv[1]) / "f"
path.write_bytes(b"old")
try:
    write_atomic(path, b"x" * (1 << 20))
except ConfigIoError as error:
    print(error.message, sorted(p.name for p in path.parent.iterdir()), path.read_bytes())
"""
        mount = f'mount -t tmpfs -o size=64k none "{tmp_path}" && exec "$0" -c "$1" "{tmp_path}"'
        done = subprocess.run(
            ["unshare", "-Urm", "sh", "-c", mount, sys.executable, script], capture_output=True, text=True, check=False
        )
        if "unshare" in done.stderr or "mount" in done.stderr:
            pytest.skip("no mount namespaces here")
        assert "No space left on device ['f'] b'old'" in done.stdout


class TestProjectLock:
    def test_second_holder_is_told_of_the_first(self, project: Project) -> None:
        with project_lock(project):
            with pytest.raises(LockBusy) as caught, project_lock(project, wait=0):
                raise AssertionError
            assert caught.value.details == {"holder_pid": os.getpid(), "holder_is_self": True}
            script = (
                "import sys; from pathlib import Path; from iii_core.project.guard import project_lock\n"
                "from iii_core.project.locate import locate_project\n"
                "from iii_core.errors import LockBusy\n"
                "try:\n"
                "    with project_lock(locate_project(cwd=Path(sys.argv[1]), environ={}), wait=0.1): pass\n"
                "except LockBusy as error: print(error.code, error.details)"
            )
            done = subprocess.run(
                [sys.executable, "-c", script, str(project.root)], capture_output=True, text=True, check=True
            )
            assert done.stdout == f"W120 {{'holder_pid': {os.getpid()}, 'holder_is_self': False}}\n"
        with project_lock(project, wait=0):
            pass

    def test_a_holder_that_is_killed_blocks_nobody(self, project: Project) -> None:
        context = multiprocessing.get_context("fork")
        held = context.Event()

        def hold() -> None:
            with project_lock(project):
                held.set()
                threading.Event().wait()

        holder = context.Process(target=hold)
        holder.start()
        assert held.wait(10)
        with pytest.raises(LockBusy), project_lock(project, wait=0):
            raise AssertionError
        assert holder.pid
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
        with project_lock(project, wait=0):
            pass

    def test_waiting(self, project: Project) -> None:
        release = threading.Event()
        held = threading.Event()

        def hold() -> None:
            with project_lock(project):
                held.set()
                release.wait(10)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(10)
        threading.Timer(0.2, release.set).start()
        with project_lock(project, wait=10):
            assert release.is_set()
        thread.join()

    def test_a_link_in_its_place_is_refused(self, project: Project, tmp_path: Path) -> None:
        project.state_dir.mkdir()
        (project.state_dir / "lock").symlink_to(tmp_path / "victim")
        with pytest.raises(ConfigIoError), project_lock(project):
            raise AssertionError
        assert not (tmp_path / "victim").exists()


class TestEditConfig:
    def test_a_missing_file_is_made(self, project: Project) -> None:
        assert edit_config(project, lambda text: put_worker(text, {"name": "x"})).action == "added"
        assert project.config_path.read_text() == "workers:\n  - name: x\n"

    def test_mode_and_byte_order_mark_stay(self, project: Project) -> None:
        project.config_path.write_bytes(b"\xef\xbb\xbf# c\r\nworkers: []\r\n")
        project.config_path.chmod(0o600)
        edit_config(project, lambda text: put_worker(text, {"name": "x"}))
        assert project.config_path.read_bytes() == b"\xef\xbb\xbf# c\r\nworkers:\r\n  - name: x\r\n"
        assert stat.S_IMODE(project.config_path.stat().st_mode) == 0o600

    def test_nothing_is_written_where_nothing_changes(self, project: Project) -> None:
        project.config_path.write_text("workers: []\n")
        before = project.config_path.stat()
        edit_config(project, lambda text: Edited(text, "unchanged"))
        after = project.config_path.stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    def test_concurrent_edits_are_all_kept(self, project: Project) -> None:
        def add(number: int) -> None:
            edit_config(project, lambda text: put_worker(text, {"name": f"w{number}"}), wait=20)

        threads = [threading.Thread(target=add, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        text = project.config_path.read_text()
        assert sorted(text.split()[3::3]) == sorted(f"w{number}" for number in range(12))
