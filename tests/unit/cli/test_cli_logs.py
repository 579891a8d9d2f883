"""``iii worker logs``: log files as the engine leaves them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from iii_core.cli.worker.tail import Follower
from iii_core.workers.logs import LOG_FILE, LineReader, RunLog, Stream

STDOUT, STDERR = Stream.STDOUT, Stream.STDERR


@pytest.fixture
def logs(project: Any) -> Path:
    folder: Path = project.root / ".iii/logs/still"
    folder.mkdir(parents=True)
    return folder


def write(logs: Path, stream: Stream, data: bytes) -> None:
    with closing(RunLog(logs)) as log:
        log.write(stream, data)


def test_streams_go_where_they_came_from(project: Any, logs: Path) -> None:
    with closing(RunLog(logs)) as log:
        log.write(STDOUT, b"".join(b"out %d\n" % n for n in range(150)))
        log.write(STDERR, b"err\nbad \xff\x9b\nno end")
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
    write(logs, STDOUT, b"left behind\n")
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
    text = b"\x1b[31mred\x1b[0m \x1b[2J\x1b]0;title\x07 \xc2\x9b2J\n"
    write(logs, STDOUT, text)
    shown = terminal("worker", "logs", "still")
    assert shown.wait() == 0
    assert b"\x1b[31mred\x1b[0m \\x1b[2J\\x1b]0;title\\x07 \\x9b2J\r\n" in shown.seen
    assert project("worker", "logs", "still").raw == text


def test_follow(project: Any, logs: Path) -> None:
    log = RunLog(logs, max_bytes=100)
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
    os.truncate(logs / LOG_FILE, 0)
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
    write(logs, STDOUT, b"x" * 99 + b"\n" * 200_000)
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


def test_one_terminal_shows_them_in_their_order(project: Any, logs: Path, terminal: Any) -> None:
    with closing(RunLog(logs)) as log:
        log.note("booting")
        log.write(STDOUT, b"one\n")
        log.write(STDERR, b"two\n")
        log.write(STDOUT, b"three\n")
        log.note("worker exited with exit 0")
    shown = terminal("worker", "logs", "still")
    assert shown.wait() == 0
    assert b"[iii] booting\r\none\r\ntwo\r\nthree\r\n[iii] worker exited with exit 0\r\n" in shown.seen


def test_one_stream_and_timestamps(project: Any, logs: Path) -> None:
    with closing(RunLog(logs)) as log:
        log.write(STDOUT, b"out\n")
        log.write(STDERR, b"err\n")
        log.note("said")
    assert (project("worker", "logs", "still", "--stream", "iii").err) == "[iii] said\n"
    done = project("worker", "logs", "still", "--stream", "stdout", "--stream", "stderr", "-t")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]{15}Z stdout out\n", done.out)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]{15}Z stderr err\n", done.err)
    assert project("worker", "logs", "still", "--stream", "nope").code == 2


def test_a_worker_cannot_look_like_iii(project: Any, logs: Path, terminal: Any) -> None:
    forged = b"[iii] one\n\x1b[1m [\x1b[0miii] two\n\xe2\x80\x8b[iii] three\n"
    with closing(RunLog(logs)) as log:
        log.write(STDERR, forged)
        log.write(STDOUT, forged)
        log.note("true")
    done = project("worker", "logs", "still")
    assert done.err.splitlines() == ["\\x5biii] one", "\\x5biii] two", "\\x5biii] three", "[iii] true"]
    assert done.raw == forged, "what goes to a program is left as it is"
    shown = terminal("worker", "logs", "still")
    assert shown.wait() == 0
    assert shown.seen.count(b"[iii]") == 1


class TestFollower:
    def test_files_that_come_and_go_between_two_looks(self, tmp_path: Path) -> None:
        log = RunLog(tmp_path, max_bytes=10)
        follower, reader = Follower(tmp_path / LOG_FILE), LineReader()
        log.write(STDOUT, b"zero\n")
        assert texts(reader, follower) == ["zero"]
        for number in range(3):
            log.write(STDOUT, b"number %d\n" % number)
        assert texts(reader, follower) == ["number 0", "number 1", "number 2"]
        assert texts(reader, follower) == []
        follower.close()
        log.close()

    def test_what_is_added_and_rotated_while_it_looks_is_not_lost(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log = RunLog(tmp_path, max_bytes=10)
        follower, reader = Follower(tmp_path / LOG_FILE), LineReader()
        log.write(STDOUT, b"zero\n")
        assert texts(reader, follower) == ["zero"]
        looks = follower._is_current

        def write_first(file: Any) -> bool:
            log._max_bytes = 1000
            log.write(STDOUT, b"last of its file\n")
            log._start_file()
            log.write(STDOUT, b"first of the next\n")
            return looks(file)

        monkeypatch.setattr(follower, "_is_current", write_first)
        assert texts(reader, follower) == ["last of its file", "first of the next"]
        follower.close()
        log.close()

    def test_a_line_without_end_is_given_in_pieces(self, tmp_path: Path) -> None:
        log = RunLog(tmp_path)
        follower, reader = Follower(tmp_path / LOG_FILE), LineReader()
        for _ in range(48):
            log.write(STDOUT, b"y" * 65536)
        assert sum(map(len, texts(reader, follower))) > 2 << 20
        log.write(STDOUT, b"\nz\n")
        assert texts(reader, follower)[-1] == "z"
        follower.close()
        log.close()


def texts(reader: LineReader, follower: Follower) -> list[str]:
    return [line.text for line in reader.read(follower.poll())]


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("stream", [STDOUT, STDERR])
def test_lines_that_do_not_arrive_are_an_error(project: Any, logs: Path, stream: Stream, unbuffered: str) -> None:
    write(logs, stream, b"line\n" * 10)
    project.env["PYTHONUNBUFFERED"] = unbuffered
    with Path("/dev/full").open("wb") as full:
        process = project.start("worker", "logs", "still", **{stream.value: full})
        said = b"".join(part or b"" for part in process.communicate(timeout=20)).decode()
    assert process.returncode == 1
    if stream is STDOUT:
        assert said.startswith("error: [W107] cannot write the output: No space left on device")


@pytest.mark.parametrize("closed", [1, 2])
def test_lines_for_a_closed_stream_go_nowhere(project: Any, logs: Path, closed: int) -> None:
    with closing(RunLog(logs)) as log:
        log.write(STDOUT, b"out\n")
        log.write(STDERR, b"err\n")
    process = project.start("worker", "logs", "still", preexec_fn=lambda: os.close(closed))
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err if closed == 1 else out) == (0, b"err\n" if closed == 1 else b"out\n")
