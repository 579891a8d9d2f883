"""``iii worker exec`` on a real sandbox: bytes, codes, signals, and who may hold up whom."""

from __future__ import annotations

import hashlib
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from iiitools.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from conftest import IIIProject

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]
TEN_MIB = 10 * 1024 * 1024
ENTER = ("worker", "exec", "math-worker")


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -TERM $$"], 128 + 15),
        (["no-such-program"], 127),
        (["/etc/passwd"], 126),
    ],
)
def test_exit_codes(running: IIIProject, command: list[str], code: int) -> None:
    done = running.run(*ENTER, "--", *command)
    assert done.returncode == code, done.stderr
    assert done.stdout == b""


def test_streams_environment_and_directory(running: IIIProject) -> None:
    done = running.run(
        *ENTER, "-e", "A=one=two", "-e", "B=x", "-w", "/tmp", "--", "sh", "-c", 'echo "$A $B $PWD"; echo err >&2; cat',
        stdin=b"in",
    )  # fmt: skip
    assert done.stdout == b"one=two x /tmp\nin"
    assert done.stderr == b"err\n"
    assert running.ok(*ENTER, "--", "pwd") == "/workspace\n"
    assert running.run(*ENTER, "-w", "/nowhere", "--", "pwd").returncode == 127


def test_timeout_kills_and_says_124(running: IIIProject) -> None:
    done = running.run(*ENTER, "--timeout", "300ms", "--", "sleep", "33")
    assert done.returncode == 124
    assert b"timed out" in done.stderr
    wait_until(lambda: "sleep 33" not in running.ok(*ENTER, "--", "ps"))  # the command has not waited for its end


def test_ten_mebibytes_come_back_byte_for_byte(running: IIIProject) -> None:
    data = os.urandom(TEN_MIB)
    done = running.run(*ENTER, "--", "cat", stdin=data)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


def test_eight_sessions_at_once_and_one_reader_that_stops(running: IIIProject) -> None:
    """Seven sessions and the worker's own calls go on while the eighth is not read."""
    stuck = running.popen(*ENTER, "--", "head", "-c", str(TEN_MIB), "/dev/zero")
    try:
        data = [os.urandom(TEN_MIB) for _ in range(7)]
        with ThreadPoolExecutor(8) as pool:
            sessions = [pool.submit(running.run, *ENTER, "--", "cat", stdin=one, timeout=150) for one in data]
            running.assert_callable()
            assert [session.result().stdout == one for session, one in zip(sessions, data, strict=True)] == [True] * 7
        output, _ = stuck.communicate(timeout=60)
        assert len(output) == TEN_MIB
    finally:
        stuck.kill()
        stuck.communicate()


def test_interrupt_reaches_the_program_and_a_second_one_ends_it(running: IIIProject) -> None:
    """Within a second, that is: on a busy machine it takes some presses until two are that close."""
    script = "trap 'echo caught' INT; echo ready; while :; do sleep 0.05; done"
    with running.session(*ENTER, "--", "sh", "-c", script) as session:
        assert session.stdout is not None
        assert session.stdout.readline() == b"ready\n"
        session.send_signal(signal.SIGINT)
        assert session.stdout.readline() == b"caught\n"
        for _ in range(20):
            session.send_signal(signal.SIGINT)
            if not session.stdout.readline():
                break
        assert session.wait(PATIENCE) == 130


def test_a_terminal(running: IIIProject) -> None:
    """With -t there is a terminal of 80x24 although ours is none (seed 000)."""
    done = running.run(*ENTER, "-t", "--", "sh", "-c", "stty size; tty; exit 3")
    assert done.returncode == 3
    assert done.stdout.replace(b"\r\n", b"\n").startswith(b"24 80\n/dev/pts/")


def test_nothing_inside_has_privileges(running: IIIProject) -> None:
    """Neither what exec starts nor the worker itself; and the host's processes and root are not there."""
    for pid in ("self", "$(ps | awk '/worker.py/ && !/awk/ {print $1}')"):
        status = running.ok(*ENTER, "--", "sh", "-c", f"cat /proc/{pid}/status")
        facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert {facts[name] for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {"0" * 16}
        assert facts["NoNewPrivs"] == "1"
        assert facts["Seccomp"] == "2"
    assert running.run(*ENTER, "--", "mount", "-t", "tmpfs", "x", "/mnt").returncode != 0
    assert running.run(*ENTER, "--", "unshare", "-U", "true").returncode != 0
    assert "iii_core" not in running.ok(*ENTER, "--", "ps")
    interfaces = running.ok(*ENTER, "--", "cat", "/proc/net/dev").splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
    if os.geteuid() == 0:  # an ordinary user's map counts from a namespace of its own, in which 0 is that user
        assert running.ok(*ENTER, "--", "cat", "/proc/self/uid_map").split()[1] != "0"


def test_what_cannot_be_entered(running: IIIProject) -> None:
    for name, text in (("nobody", b"W112"), ("iii-worker-manager", b"inside the engine"), ("../x", b"W100")):
        done = running.run("worker", "exec", name, "--", "true")
        assert done.returncode in (1, 2), done
        assert text in done.stderr
    assert running.run(*ENTER).returncode != 0
