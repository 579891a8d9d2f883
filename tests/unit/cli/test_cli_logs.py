"""``iii worker logs``: log files as the engine leaves them."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from iii_core.cli.worker.tail import Follower, tail_lines
from iii_core.workers.logs import STDERR, STDOUT, RunLog


@pytest.fixture
def logs(project: Any) -> Path:
    folder: Path = project.root / ".iii/logs/still"
    folder.mkdir(parents=True)
    return folder


def test_streams_go_where_they_came_from(project: Any, logs: Path) -> None:
    (logs / "stdout.log").write_bytes(b"".join(b"out %d\n" % n for n in range(150)))
    (logs / "stderr.log").write_bytes(b"err\nbad \xff\x9b\nno end")
    done = project("worker", "logs", "still")
    assert done.code == 0
    assert done.out.splitlines() == [f"out {n}" for n in range(50, 150)]
    assert done.err == "err\nbad \ufffd\ufffd\nno end\n"
    assert project("worker", "logs", "still", "-n", "2").out == "out 148\nout 149\n"
    assert project("worker", "logs", "still", "-n", "0").out == ""


def test_no_output_yet(project: Any) -> None:
    done = project("worker", "logs", "still")
    assert (done.code, done.out, done.err) == (0, "", "  still has no logs yet.\n")


def test_unknown_workers(project: Any, logs: Path) -> None:
    done = project("worker", "logs", "nobody")
    assert done.code == 1
    assert "[W112]" in done.err
    project.config.write_text("workers: []\n")
    (logs / "stdout.log").write_text("left behind\n")
    assert project("worker", "logs", "still").out == "left behind\n"


def test_previous_run(project: Any, logs: Path) -> None:
    for text in ("first", "second"):
        log = RunLog(logs)
        log.write(STDOUT, f"{text}\n".encode())
        log.write(STDERR, f"{text} err\n".encode())
        log.close()
    assert project("worker", "logs", "still").out == "second\n"
    done = project("worker", "logs", "still", "--previous")
    assert (done.out, done.err) == ("first\n", "first err\n")


def test_a_terminal_gets_colours_but_no_commands(project: Any, logs: Path, terminal: Any) -> None:
    (logs / "stdout.log").write_bytes(b"\x1b[31mred\x1b[0m \x1b[2J\x1b]0;title\x07 \xc2\x9b2J\n")
    shown = terminal("worker", "logs", "still")
    assert shown.wait() == 0
    assert b"\x1b[31mred\x1b[0m \\x1b[2J\\x1b]0;title\\x07 \\x9b2J\r\n" in shown.seen
    assert project("worker", "logs", "still").raw == (logs / "stdout.log").read_bytes()


def test_follow(project: Any, logs: Path) -> None:
    log = RunLog(logs, max_bytes=40)
    log.write(STDOUT, b"old\nunfinished")
    process = project.start("worker", "logs", "still", "--follow")
    assert process.stdout.readline() == b"old\n"
    log.write(STDOUT, b" line\n")
    assert process.stdout.readline() == b"unfinished line\n"
    for number in (b"1", b"2", b"3"):  # each in a file of its own, the oldest of which is gone in the end
        log.write(STDOUT, b"more than half of a file: " + number + b"\n")
        assert process.stdout.readline() == b"more than half of a file: " + number + b"\n"
    log.write(STDERR, b"err\n")
    assert process.stderr.readline() == b"err\n"
    log.close()
    log = RunLog(logs)  # the worker was restarted
    log.write(STDOUT, b"a new run\n")
    assert process.stdout.readline() == b"a new run\n"
    os.truncate(logs / "stdout.log", 0)
    log.write(STDOUT, b"cut\n")
    assert process.stdout.readline() == b"cut\n"
    log.close()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, b"", b"")


def test_follow_what_does_not_exist_yet(project: Any, logs: Path) -> None:
    process = project.start("worker", "logs", "still", "-f", stderr=subprocess.DEVNULL)
    log = RunLog(logs)
    log.write(STDOUT, b"at last\n")
    log.close()
    assert process.stdout.readline() == b"at last\n"
    process.kill()
    process.communicate(timeout=20)


def test_the_reader_leaves(project: Any, logs: Path) -> None:
    (logs / "stdout.log").write_bytes(b"x" * 99 + b"\n" * 500_000)
    process = project.start("worker", "logs", "still", "-n", "400000")
    process.stdout.read(10)
    process.stdout.close()
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (141, b"")


def test_lines_must_be_a_number(project: Any) -> None:
    for bad in ("-1", "x", "1.5", "²"):
        done = project("worker", "logs", "still", f"--lines={bad}")
        assert done.code == 1
        assert "[W106]" in done.err


class TestTail:
    def test_only_the_end_of_a_large_file_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        path.write_bytes(b"first\n" + b"x" * (1 << 20) + b"\nlast\n")
        assert tail_lines(path, 10) == ["last"]
        assert tail_lines(tmp_path / "missing", 10) == []

    def test_files_that_come_and_go_between_two_looks(self, tmp_path: Path) -> None:
        log = RunLog(tmp_path, max_bytes=10)
        follower = Follower(tmp_path / "stdout.log", count=10)
        log.write(STDOUT, b"zero\n")
        assert follower.start() == ["zero"]
        for number in range(3):
            log.write(STDOUT, b"number %d\n" % number)
        assert list(follower.poll()) == ["number 0", "number 1", "number 2"]
        assert list(follower.poll()) == []
        follower.close()
        log.close()

    def test_a_line_without_end_is_given_in_pieces(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        follower = Follower(path, count=10)
        assert follower.start() == []
        with path.open("wb") as file:
            file.write(b"y" * (3 << 20))
            file.flush()
            pieces = list(follower.poll())
            assert sum(map(len, pieces)) > 2 << 20
            file.write(b"\nz\n")
            file.flush()
            assert list(follower.poll())[-1] == "z"
        follower.close()
