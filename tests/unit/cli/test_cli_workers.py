"""``iii worker`` with and without an engine: list, status, start, stop, restart, add, remove."""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from iii_core.workers.logs import RunLog, Stream

BAD_NAMES = ["../x", ".x", "a b", "", "a/b", "x" * 200]


def names(shown: Any) -> list[str]:
    return [row["name"] for row in json.loads(shown.out)["workers"] if row["type"] != "external"]


class TestList:
    def test_nothing(self, iii: Any) -> None:
        done = iii("worker", "list")
        assert (done.code, done.out) == (0, "")
        assert done.err == "  No workers. Use `iii worker add` to get started.\n"
        assert json.loads(iii("worker", "list", "--json").out) == {"workers": []}
        assert not (iii.root / ".iii").exists()

    def test_without_engine_all_are_stopped(self, project: Any) -> None:
        done = project("worker", "list")
        assert (done.code, done.out) == (0, "")
        assert done.err.splitlines()[:3] == [
            "  NAME                      TYPE       VERSION    PID        STATUS",
            "  ----                      ----       -------    ---        ------",
            "  running                   oci        -          -          stopped",
        ]
        rows = json.loads(project("worker", "list", "--json").out)["workers"]
        assert [(row["name"], row["type"], row["status"]) for row in rows] == [
            ("running", "oci", "stopped"),
            ("failing", "oci", "stopped"),
            ("slow", "oci", "stopped"),
            ("still", "oci", "stopped"),
            ("iii-http", "engine", "stopped"),
        ]

    def test_with_engine(self, engine: Any) -> None:
        rows = {row["name"]: row for row in json.loads(engine("worker", "list", "--json").out)["workers"]}
        assert rows["running"]["status"] == "running"
        assert rows["running"]["pid"] > 0
        shown = engine("worker", "list").err
        assert "running (namespaces)" in shown
        assert rows["running-elsewhere"]["type"] == "external"
        assert re.search(r"^  running-elsewhere +external +- +\d+ +running$", shown, re.MULTILINE)
        assert "failed - it is\\x1b[2Jbroken" in shown  # what a worker says does not clear our screen

    def test_versions_come_from_the_lockfile(self, project: Any) -> None:
        project.config.with_name("iii.lock").write_text(
            "version: 1\nworkers:\n  iii-http:\n    version: 0.16.0\n    type: engine\n    dependencies: {}\n"
        )
        rows = {row["name"]: row for row in json.loads(project("worker", "list", "--json").out)["workers"]}
        assert rows["iii-http"]["version"] == "0.16.0"

    def test_a_dead_engines_record_is_no_engine(self, project: Any) -> None:
        state = project.root / ".iii"
        state.mkdir()
        record = {"pid": os.getpid(), "start_time": 1, "control": "/nowhere", "port": 1}
        (state / "engine.json").write_text(json.dumps(record))
        assert names(project("worker", "list", "--json"))[0] == "running"
        assert project("worker", "start", "still").code == 1


class TestControlSocket:
    """The record lies in the project folder, which may come from a stranger."""

    def record(self, project: Any, control: str) -> None:
        from iii_core.project.locate import process_start_time

        (project.root / ".iii").mkdir()
        data = {"pid": os.getpid(), "start_time": process_start_time(os.getpid()), "control": control, "port": 1}
        (project.root / ".iii/engine.json").write_text(json.dumps(data))

    def test_a_file_is_refused(self, project: Any) -> None:
        (project.root / "file").touch()
        self.record(project, str(project.root / "file"))
        done = project("worker", "start", "still")
        assert done.code == 1
        assert "[W204]" in done.err

    def test_a_socket_that_others_may_use_is_refused(self, project: Any, runtime: Path) -> None:
        import socket

        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(runtime / "s"))
            listener.listen()
            (runtime / "s").chmod(0o666)
            self.record(project, str(runtime / "s"))
            done = project("worker", "start", "still")
        assert "is not private to this user" in done.err

    def test_something_else_that_answers(self, project: Any, runtime: Path) -> None:
        import socket
        import threading

        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(runtime / "s"))
            (runtime / "s").chmod(0o600)
            listener.listen()
            self.record(project, str(runtime / "s"))

            def answer() -> None:
                peer, _ = listener.accept()
                with peer:
                    peer.recv(100)
                    peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

            thread = threading.Thread(target=answer)
            thread.start()
            done = project("worker", "start", "still")
            thread.join()
        assert done.code == 1
        assert "[W201] the engine ended before it answered" in done.err


class TestStatus:
    def test_ready(self, engine: Any) -> None:
        done = engine("worker", "status", "running")
        assert (done.code, done.out) == (0, "")
        for line in (
            "  ✓ running ready (pid ",
            "     engine:  running ws://127.0.0.1:50123",
            f"     config:  present type=oci ({engine.config}:2)",
            "    sandbox:  double (namespaces) image=r/x:1",
            "     worker:  registered (connected to engine)",
            "     limits:  not enforced here: memory",
            "       logs:  none yet",
            "    tail of stdout",
        ):
            assert f"\n{line}" in done.err

    def test_failed(self, engine: Any) -> None:
        done = engine("worker", "status", "failing")
        assert done.code == 1
        assert "✗ failing failed" in done.err
        assert "error:  [W113] it ended" in done.err

    def test_json(self, engine: Any) -> None:
        done = engine("worker", "status", "running", "--json")
        assert done.code == 0
        assert done.err == ""
        assert json.loads(done.out)["status"] == "running"

    def test_unknown(self, engine: Any, project: Any) -> None:
        done = engine("worker", "status", "nobody")
        assert done.code == 1
        assert "[W112]" in done.err

    def test_without_engine(self, project: Any) -> None:
        logs = project.root / ".iii/logs/still"
        logs.mkdir(parents=True)
        with closing(RunLog(logs)) as log:
            log.write(Stream.STDERR, b"one\ntwo\n")
        done = project("worker", "status", "still")
        assert done.code == 1
        assert "engine:  stopped (run `iii` in another terminal)" in done.err
        assert "available (tail with `iii worker logs still -f`)" in done.err
        assert "    two\n" in done.err
        assert json.loads(project("worker", "status", "still", "--json").out)["status"] == "engine-down"

    def test_a_terminal_is_redrawn_until_the_state_settles(self, engine: Any, terminal: Any) -> None:
        shown = terminal("worker", "status", "slow")
        shown.expect(rb"slow booting its sandbox")
        shown.expect(rb"\x1b\[\d+F\x1b\[J")
        shown.expect(rb"slow ready")
        assert shown.wait() == 0

    def test_no_watch(self, engine: Any, terminal: Any) -> None:
        shown = terminal("worker", "status", "slow", "--no-watch")
        assert shown.wait() == 0
        assert b"booting" in shown.seen


class TestStartAndStop:
    def test_start(self, engine: Any) -> None:
        done = engine("worker", "start", "still")
        assert (done.code, done.out) == (0, "")
        assert "  Starting still...\n  ✓ still started (pid: " in done.err
        assert ", ready in " in done.err
        assert "ready" not in engine("worker", "restart", "still", "--no-wait").err

    def test_start_of_a_running_one(self, engine: Any) -> None:
        done = engine("worker", "start", "running")
        assert (done.code, done.out) == (0, "")
        assert re.fullmatch(r"  ✓ running already running \(pid: \d+\)\n", done.err)
        assert "`iii worker restart running --cold`" in engine("worker", "start", "running", "--cold").err

    @pytest.mark.parametrize(
        "command", ["status", "start", "restart", "stop -y", "remove -y", "exec", "logs", "snapshot"]
    )
    def test_an_almost_right_name(self, engine: Any, command: str) -> None:
        verb, *options = command.split()
        done = engine("worker", verb, *options, "runing", *(("--", "true") if verb == "exec" else ()))
        assert done.code == 1
        assert "error: [W112] worker 'runing' is not in config.yaml\nhint: did you mean 'running'?\n" in done.err

    def test_what_lives_inside_the_engine(self, engine: Any) -> None:
        for command in ("start", "restart"):
            done = engine("worker", command, "iii-http")
            assert (done.code, done.err) == (
                0,
                "  iii-http lives inside the engine, and runs as long as the engine does.\n",
            )
        done = engine("worker", "stop", "iii-http")
        assert done.code == 1
        assert "cannot stop 'iii-http': it lives inside the engine" in done.err

    def test_the_port_must_be_the_engines(self, engine: Any) -> None:
        assert engine("worker", "start", "still", "--port", "50123").code == 0
        done = engine("worker", "restart", "still", "--port", "50124")
        assert done.code == 1
        assert "[W201] the engine of this project is at port 50123, not 50124" in done.err
        assert engine("worker", "start", "still", "--port", "x").code == 2

    def test_a_config_file_of_the_worker_is_not_used(self, engine: Any) -> None:
        done = engine("worker", "start", "still", "--config", "own.yaml")
        assert done.code == 0
        assert "warning: --config is not used: still runs in a sandbox" in done.err

    def test_a_start_that_takes_too_long_is_a_warning(self, engine: Any) -> None:
        engine("worker", "add", "r/never:1", "--no-wait")
        done = engine("worker", "start", "never")
        assert done.code == 0
        assert "warning: worker 'never' is not ready after 120 s\n  hint: watch it\n" in done.err

    def test_stop_needs_a_yes(self, engine: Any, terminal: Any) -> None:
        done = engine("worker", "stop", "running")
        assert done.code == 1
        assert "[W104]" in done.err
        assert "pass -y" in done.err
        declined = terminal("worker", "stop", "running")
        declined.expect(rb"Stop worker 'running'\? \[y/N\]")
        declined.send(b"\n")
        assert declined.wait() == 1
        assert b"W170" in declined.seen
        agreed = terminal("worker", "stop", "running")
        agreed.expect(rb"\[y/N\]")
        agreed.send(b"y\n")
        assert agreed.wait() == 0
        assert "already stopped" in engine("worker", "stop", "running").err

    def test_yes_beforehand(self, engine: Any) -> None:
        done = engine("worker", "stop", "-y", "running")
        assert (done.code, done.out) == (0, "")
        assert done.err == "  Stopping running...\n  ✓ running stopped\n"

    def test_stopping_what_does_not_run_asks_nothing(self, engine: Any) -> None:
        for name in ("still", "failing"):
            done = engine("worker", "stop", name)
            assert (done.code, done.err) == (0, f"  ✓ {name} already stopped\n")

    def test_without_engine(self, project: Any) -> None:
        assert project("worker", "stop", "running").err == "  ✓ running already stopped\n"
        for command in ("start", "restart"):
            done = project("worker", command, "running")
            assert done.code == 1
            assert "error: [W201] the engine of this project is not running\nhint: start it with 'iii'" in done.err

    def test_unknown_workers(self, engine: Any) -> None:
        for command in ("start", "restart", "stop"):
            assert "[W112]" in engine("worker", command, "nobody").err


class TestAdd:
    def test_through_the_engine(self, engine: Any) -> None:
        done = engine("worker", "add", "ghcr.io/o/thumbs:1")
        assert (done.code, done.out) == (0, "")
        assert done.err.splitlines()[0] == "  Adding ghcr.io/o/thumbs:1..."
        assert "  downloading layer 1: " in done.err
        for line in ("  Name: thumbs", "  Version: 1.0.0", "  Size: 7.3 MB", "  ✓ Worker thumbs added to config.yaml"):
            assert f"{line}\n" in done.err
        assert "  ✓ Wrote iii.lock\n" in done.err
        assert "  ✓ ready in " in done.err
        assert "thumbs" in names(engine("worker", "list", "--json"))
        assert "unchanged in config.yaml" in engine("worker", "add", "ghcr.io/o/thumbs:1").err

    def test_not_ready_is_a_warning(self, engine: Any) -> None:
        done = engine("worker", "add", "o/never:1")
        assert done.code == 0
        assert "warning: not ready: not ready after 120 s" in done.err
        assert "warning" not in engine("worker", "add", "o/never:1", "--no-wait").err

    def test_one_that_cannot_run_is_an_error(self, engine: Any) -> None:
        done = engine("worker", "add", "o/broken:1")
        assert done.code == 1
        assert "  ✓ Worker broken added to config.yaml\n" in done.err
        assert "error: [W242] added, but it does not run: cannot run '/bin/no'\nhint: look inside\n" in done.err

    def test_without_manifest(self, engine: Any) -> None:
        assert "Image pulled (no manifest found)" in engine("worker", "add", "o/plain:1").err

    def test_several(self, engine: Any) -> None:
        done = engine("worker", "add", "o/one:1", "bad", "o/two:1")
        assert done.code == 1
        assert "  [2/3] Adding bad...\nerror: [W220] no such image\nhint: check the name\n" in done.err
        assert done.err.endswith("  ✓ two\n  Added 2/3 workers. 1 failed.\n")
        assert {"one", "two"} <= set(names(engine("worker", "list", "--json")))

    def test_a_bar_on_a_terminal(self, engine: Any, terminal: Any) -> None:
        shown = terminal("worker", "add", "o/one:1")
        assert shown.wait() == 0
        assert b"\r\x1b[Kdownloading" in shown.seen
        assert b"\r\x1b[K" in shown.seen.rpartition(b"Name: one")[0]

    def test_without_engine_nothing_changes_where_nobody_accepts_it(self, project: Any) -> None:
        before = project.config.read_bytes()
        for source in ("./folder", "no-such-registry-worker"):
            done = project("worker", "add", source, "--force", env={"III_DISABLE_PLUGINS": "*"})
            assert done.code == 1
            assert "error: [W212]" in done.err
        assert project.config.read_bytes() == before

    def test_several_without_engine_are_independent(self, project: Any) -> None:
        done = project("worker", "add", "./one", "./two")
        assert done.code == 1
        assert done.err.endswith("  Added 0/2 workers. 2 failed.\n")


class TestRemove:
    def test_without_engine(self, project: Any) -> None:
        before = project.config.read_text()
        done = project("worker", "remove", "still")
        assert (done.code, done.out) == (0, "")
        assert done.err == "  ✓ still removed from config.yaml\n"
        assert project.config.read_text() == before.replace("  - name: still\n    image: reg.test/a/still:1\n", "")

    def test_only_running_workers_need_a_yes(self, engine: Any, terminal: Any) -> None:
        assert engine("worker", "remove", "still").code == 0
        refused = engine("worker", "remove", "running", "failing")
        assert refused.code == 1
        assert "[W104]" in refused.err
        asked = terminal("worker", "remove", "running")
        asked.expect(rb"Running: running. Stop and remove it\? \[y/N\]")
        asked.send(b"yes\n")
        assert asked.wait() == 0
        assert names(engine("worker", "list", "--json")) == ["failing", "slow", "iii-http"]
        assert engine("worker", "remove", "-y", "slow").code == 0

    def test_several(self, project: Any) -> None:
        done = project("worker", "remove", "still", "nobody", "slow")
        assert done.code == 1
        assert "  [2/3] Removing nobody...\nerror: [W112] " in done.err
        assert done.err.endswith("  Removed 2/3 workers. 1 failed.\n")

    def test_concurrent_edits_are_all_kept(self, project: Any) -> None:
        started = [project.start("worker", "remove", name) for name in ("running", "failing", "slow", "still")]
        for process in started:
            process.communicate(timeout=30)
        assert [process.returncode for process in started] == [0, 0, 0, 0]
        assert names(project("worker", "list", "--json")) == ["iii-http"]


def check_refused(project: Any, command: str, name: str) -> None:
    done = project("worker", command, name, *(["--", "ls"] if command == "exec" else []))
    assert done.code == 1
    assert "error: [W100] Worker name " in done.err
    assert not (project.root / ".iii").exists()


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names_touch_nothing(project: Any, name: str) -> None:
    check_refused(project, "logs", name)


@pytest.mark.parametrize("command", ["start", "stop", "restart", "snapshot", "status", "remove", "exec"])
def test_every_command_checks_names(project: Any, command: str) -> None:
    check_refused(project, command, "../x")


def test_an_engine_that_dies_in_mid_request(engine: Any) -> None:
    process = engine.start(
        "worker", "exec", "running", "--no-tty", "--", "sh", "-c", "echo up; read x; kill -9 $PPID; sleep 9"
    )
    assert process.stdout.readline() == b"up\n"
    begun = time.monotonic()
    process.stdin.write(b"go\n")
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert b"[W201] the engine ended before it answered" in err
    assert time.monotonic() - begun < 9, "the process of the worker ends after 9 s"


def test_a_control_socket_that_is_gone_is_not_an_engine_that_is(engine: Any, runtime: Path) -> None:
    record = json.loads((engine.root / ".iii/engine.json").read_text())
    Path(record["control"]).unlink()
    done = engine("worker", "list")
    assert done.code == 1
    assert f"error: [W204] the engine of this project runs (pid {record['pid']}), but its control socket" in done.err
    assert f"'kill {record['pid']}'" in done.err
