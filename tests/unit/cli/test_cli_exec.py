"""``iii worker exec`` between real pipes and terminals (spec worker-cli §6.1)."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import termios
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from iii_core.sandbox.host_processes import ProcessId


@pytest.fixture
def engine(shared_engine: Any) -> Any:
    return shared_engine


@pytest.fixture
def terminal(terminal: Any, engine: Any) -> Any:
    return partial(terminal, of=engine)


def run(engine: Any, *argv: str, options: tuple[str, ...] = (), **more: Any) -> Any:
    return engine("worker", "exec", "running", *options, "--", *argv, **more)


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -TERM $$", 143), ("kill -KILL $$", 137)],
)
def test_exit_codes(engine: Any, script: str, code: int) -> None:
    done = run(engine, "sh", "-c", script)
    assert (done.code, done.out, done.err) == (code, "", "")


def test_streams_stay_apart_and_bytes_stay_the_same(engine: Any) -> None:
    done = run(engine, "sh", "-c", r"printf 'a\r\n\000\377'; printf 'e\n' >&2")
    assert done.raw == b"a\r\n\x00\xff"
    assert done.err == "e\n"


def test_a_large_round_trip(engine: Any) -> None:
    blob = os.urandom(10 * 1024 * 1024)
    done = run(engine, "cat", stdin=blob)
    assert hashlib.sha256(done.raw).digest() == hashlib.sha256(blob).digest()
    assert (done.code, done.err) == (0, "")


def test_environment_directory_and_arguments(engine: Any) -> None:
    options = ("-e", "A=1", "--env", "B=x=y", "-e", "A=2", "-w", "/usr")
    done = run(engine, "sh", "-c", 'echo "$A|$B|$PWD|$1|$2"', "sh", "-e", "two words", options=options)
    assert done.out == "2|x=y|/usr|-e|two words\n"


def test_stdin_ends(engine: Any) -> None:
    assert run(engine, "sh", "-c", "cat; echo end", stdin=b"in\n").out == "in\nend\n"
    assert run(engine, "sh", "-c", "cat; echo end", stdin=b"").out == "end\n"


def test_input_nobody_reads(engine: Any) -> None:
    assert run(engine, "true", stdin=b"x" * 5_000_000).code == 0


def test_stdin_from_a_file(engine: Any) -> None:
    (engine.root / "file").write_bytes(b"from a file\n")
    with (engine.root / "file").open("rb") as file:
        process = engine.start("worker", "exec", "running", "--", "cat", stdin=file)
        out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, b"from a file\n")


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["running"], 1, "no command given"),
        (["running", "--"], 1, "no command given"),
        (["running", "-t", "--no-tty", "--", "ls"], 2, "exclude each other"),
        (["running", "--timeout", "30", "--", "ls"], 1, "'30' is not a duration"),
        (["running", "-e", "NOPE", "--", "ls"], 2, "-e 'NOPE' is not KEY=VALUE"),
        (["still", "--", "ls"], 1, "[W113] worker 'still' is not running"),
        (["nobody", "--", "ls"], 1, "[W112]"),
        (["running", "--", "/no/such/program"], 127, "[W242]"),
        (["running", "--", "/etc/passwd"], 126, "[W242]"),
        (["running", "-w", "/no/such/folder", "--", "ls"], 127, "[W242]"),
    ],
)
def test_what_cannot_be_run(engine: Any, args: list[str], code: int, text: str) -> None:
    done = engine("worker", "exec", *args)
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("error: ")
    assert text in done.err


def test_without_engine(project: Any) -> None:
    done = run(project, "ls")
    assert done.code == 1
    assert "[W201]" in done.err


def test_timeout(engine: Any) -> None:
    begun = time.monotonic()
    done = run(engine, "sh", "-c", "echo before; sleep 50", options=("--timeout", "2500ms"))
    assert (done.code, done.out, done.err) == (124, "before\n", "error: timed out after 2500ms\n")
    assert time.monotonic() - begun < 35
    assert run(engine, "sleep", "30", options=("--timeout", "0s")).code == 124
    assert run(engine, "true", options=("--timeout", "1m 30s")).code == 0
    assert run(engine, "sh", "-c", "exit 124", options=("--timeout", "1m")).err == ""


def test_the_reader_of_our_output_leaves(engine: Any) -> None:
    process = engine.start("worker", "exec", "running", "--", "sh", "-c", "echo $$; exec yes")
    pid = int(process.stdout.readline())
    process.stdout.close()
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (141, b"")
    wait_gone(pid)


def test_killing_the_command_kills_the_process(engine: Any) -> None:
    process = engine.start("worker", "exec", "running", "--", "sh", "-c", "echo $$; exec sleep 60")
    pid = int(process.stdout.readline())
    process.kill()
    process.communicate(timeout=20)
    wait_gone(pid)


class TestSignals:
    def begin(self, engine: Any, script: str) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] = engine.start("worker", "exec", "running", "--", "sh", "-c", script)
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        return process

    def test_once_interrupts(self, engine: Any) -> None:
        process = self.begin(engine, "trap 'echo caught; exit 5' INT; echo up; while :; do sleep 0.05; done")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (5, b"caught\n", b"")

    def test_twice_kills(self, engine: Any) -> None:
        process = self.begin(engine, "trap 'echo no' INT; echo up; while :; do sleep 0.05; done")
        assert process.stdout is not None
        for _ in range(5):  # where the machine stands still for a second in between, it is once and once
            process.send_signal(signal.SIGINT)
            if process.stdout.readline() != b"no\n":
                break
        process.communicate(timeout=20)
        assert process.returncode == 130

    def test_twice_but_slowly_is_once_and_once(self, engine: Any) -> None:
        process = self.begin(engine, "trap 'echo no' INT; trap 'exit 4' TERM; echo up; while :; do sleep 0.05; done")
        assert process.stdout is not None
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == b"no\n"
            time.sleep(1.2)
        assert process.poll() is None
        process.kill()
        process.communicate(timeout=20)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
    def test_others_are_passed_on(self, engine: Any, number: signal.Signals) -> None:
        process = self.begin(engine, "trap 'echo bye; exit 3' TERM HUP; echo up; while :; do sleep 0.05; done")
        process.send_signal(number)
        out, _ = process.communicate(timeout=20)
        assert (process.returncode, out) == (128 + number, b"bye\n")


class TestTerminal:
    def test_it_is_one_if_both_ends_are(self, engine: Any, terminal: Any) -> None:
        shown = terminal(
            "worker", "exec", "running", "--", "sh", "-c", "tty; stty size; read x; echo got $x", rows=33, columns=77
        )
        shown.expect(rb"/dev/pts/\d+\r\n33 77\r\n")
        shown.send(b"line\r")
        shown.expect(rb"line\r\ngot line\r\n")
        assert shown.wait() == 0

    def test_keys_go_through_and_attributes_come_back(self, engine: Any, terminal: Any) -> None:
        script = "trap 'echo int; exit 9' INT; echo up; while :; do sleep 0.05; done"
        shown = terminal("worker", "exec", "running", "--", "sh", "-c", script)
        shown.expect(rb"up\r\n")
        assert not termios.tcgetattr(shown.slave)[3] & termios.ICANON
        shown.send(b"\x03")
        shown.expect(rb"int\r\n")
        assert shown.wait() == 9
        assert termios.tcgetattr(shown.slave) == shown.attributes

    def test_attributes_come_back_after_a_signal_and_a_timeout(self, engine: Any, terminal: Any) -> None:
        shown = terminal("worker", "exec", "running", "--", "sh", "-c", "echo up; sleep 60")
        shown.expect(rb"up\r\n")
        shown.process.terminate()
        assert shown.wait() == 143
        assert termios.tcgetattr(shown.slave) == shown.attributes
        shown = terminal("worker", "exec", "running", "--timeout", "500ms", "--", "sleep", "60")
        assert shown.wait() == 124
        assert termios.tcgetattr(shown.slave) == shown.attributes
        assert b"timed out after 500ms" in shown.seen

    def test_its_size_follows(self, engine: Any, terminal: Any) -> None:
        script = "trap 'stty size' WINCH; echo up; while :; do sleep 0.05; done"
        shown = terminal("worker", "exec", "running", "--", "sh", "-c", script)
        shown.expect(rb"up\r\n")
        shown.resize(41, 123)
        shown.expect(rb"41 123\r\n")
        shown.send(b"\x03")
        assert shown.wait() == 130

    def test_a_storm_of_resizes_hurts_nothing(self, terminal: Any) -> None:
        script = "stty size; cat > /dev/null; stty size"
        shown = terminal("worker", "exec", "running", "--", "sh", "-c", script)
        shown.expect(rb"30 100\r\n")
        status = Path(f"/proc/{shown.process.pid}/status").read_text()
        caught = int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16)  # type: ignore[index]
        assert not caught >> (signal.SIGWINCH - 1) & 1, "handlers written in Python nest"
        for number in range(300_000):
            os.kill(shown.process.pid, signal.SIGWINCH)
            if number % 1000 == 0:
                shown.resize(20 + number // 1000 % 10, 90)
        shown.resize(41, 123)
        shown.send(b"\x04")
        shown.expect(rb"\^?D?.*41 123\r\n")
        assert shown.wait() == 0
        assert b"error" not in shown.seen

    def test_redirected_output_is_a_pipe(self, engine: Any, terminal: Any) -> None:
        with (engine.root / "out").open("wb") as out:
            shown = terminal("worker", "exec", "running", "--", "sh", "-c", "tty; cat; echo done", out=out)
            assert shown.wait() == 0  # stdin is a terminal that belongs to the user's shell: it ends at once
        assert (engine.root / "out").read_bytes() == b"not a tty\ndone\n"

    def test_pipe_mode_can_be_forced(self, engine: Any, terminal: Any) -> None:
        shown = terminal("worker", "exec", "running", "--no-tty", "--", "sh", "-c", "tty; echo err >&2")
        assert shown.wait() != 1 or b"not a tty" in shown.seen
        assert b"not a tty" in shown.seen

    def test_a_terminal_can_be_forced_without_one(self, engine: Any) -> None:
        done = engine("worker", "exec", "running", "-t", "--", "sh", "-c", "tty; stty size; cat", stdin=b"typed\n")
        assert done.code == 0
        assert b"/dev/pts/" in done.raw
        assert b"24 80\r\n" in done.raw
        assert b"typed\r\n" in done.raw


def test_many_at_once(engine: Any) -> None:
    started = [engine.start("worker", "exec", "running", "--", "sh", "-c", f"cat; exit {n}") for n in range(8)]
    for number, process in enumerate(started):
        out, _ = process.communicate(str(number).encode(), timeout=40)
        assert (process.returncode, out) == (number, str(number).encode())


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + 30
    while ProcessId.of(pid) is not None:
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.02)


def test_output_that_does_not_arrive_is_an_error(engine: Any) -> None:
    with Path("/dev/full").open("wb") as full:
        process = engine.start("worker", "exec", "running", "--", "sh", "-c", "echo x; cat", stdout=full)
        said = process.stderr.read()
        process.stdin.close()
        assert process.wait(20) == 1
    assert said.startswith(b"error: [W107] cannot write the output: No space left on device")
