"""The commands that look after one worker, typed on a terminal (seeds 000, 002; spec worker-cli §1.2, §1.7-§1.11)."""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import IIIProject

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]
NAME = "math-worker"


def test_stop_asks_and_a_no_stops_nothing(working: IIIProject) -> None:
    before = working.status()
    for answer in (b"\n", b"n\n", b"yess\n", b"\x04"):
        with working.type("worker", "stop", NAME) as terminal:
            terminal.expect(rb"Stop worker 'math-worker'\? \[y/N\]")
            terminal.send(answer)
            assert terminal.wait() == 1
            assert b"[W170]" in terminal.seen
    with working.type("worker", "stop", NAME) as terminal:
        terminal.expect(rb"\[y/N\]")
        terminal.send(b"\x03")
        assert terminal.wait() == 130
    assert working.status()["pid"] == before["pid"]
    working.assert_callable()

    with working.type("worker", "stop", NAME) as terminal:
        terminal.expect(rb"\[y/N\]")
        terminal.send(b"y\n")
        terminal.expect(rb"Stopping math-worker\.\.\.")
        terminal.expect("✓ math-worker stopped".encode())
        assert terminal.wait() == 0
    assert (working.row()["status"], working.row()["pid"]) == ("stopped", None)
    assert NAME in working.config.read_text(), "stopping edits nothing"
    again = working.run("worker", "stop", NAME)
    assert (again.returncode, again.stderr.decode()) == (0, f"  ✓ {NAME} already stopped\n")


def test_remove_asks_only_where_something_runs(working: IIIProject) -> None:
    before = working.config.read_text()
    with working.type("worker", "remove", NAME) as terminal:
        terminal.expect(rb"Running: math-worker\. Stop and remove it\? \[y/N\]")
        terminal.send(b"n\n")
        assert terminal.wait() == 1
    assert working.config.read_text() == before
    working.assert_callable()
    unattended = working.run("worker", "remove", NAME)
    assert (unattended.returncode, unattended.stdout) == (1, b"")
    assert b"[W104]" in unattended.stderr
    assert b"pass -y" in unattended.stderr
    working.ok("worker", "stop", "-y", NAME)
    with working.type("worker", "remove", NAME) as terminal:
        assert terminal.wait() == 0
        assert b"[y/N]" not in terminal.seen
        assert "✓ math-worker removed from config.yaml".encode() in terminal.seen
    assert NAME not in working.config.read_text()
    listed = working.run("worker", "list")
    assert NAME not in listed.stderr.decode()


def test_status_shows_config_sandbox_and_the_last_lines(running: IIIProject) -> None:
    running.assert_callable()
    running.wait_logged("adding 2 and 3")
    with running.type("worker", "status", NAME) as terminal:
        assert terminal.wait() == 0
        shown = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", terminal.seen.decode()).replace("\r", "")
    pid = running.row()["pid"]
    for line in (
        f"  ✓ {NAME} ready (pid {pid})",
        f"     engine:  running ws://127.0.0.1:{running.port}",
        f"     config:  present type=oci ({running.config}:",
        "    sandbox:  bubblewrap (namespaces) image=127.0.0.1:",
        f"    process:  alive pid={pid}",
        "     worker:  registered (connected to engine)",
        f"       logs:  available (tail with `iii worker logs {NAME} -f`)",
        "  last lines of stdout:",
        "    adding 2 and 3",
    ):
        assert f"\n{line}" in shown, shown


def test_status_on_a_terminal_waits_until_the_worker_is_ready(working: IIIProject) -> None:
    working.ok("worker", "stop", "-y", NAME)
    with ExitStack() as until_seen:
        until_seen.enter_context(working.nothing_boots())
        working.ok("worker", "start", "--no-wait", NAME)
        with working.type("worker", "status", NAME) as terminal:
            terminal.expect(rb"\x1b\[\d+F\x1b\[J")  # redrawn in place
            until_seen.close()
            terminal.expect(rb"math-worker ready")
            assert terminal.wait() == 0
    working.ok("worker", "stop", "-y", NAME)
    with working.type("worker", "status", NAME) as terminal:
        assert terminal.wait() == 0, "stopped is a state like another"
        assert b"math-worker stopped" in terminal.seen
    assert working.stop() == 0
    with working.type("worker", "status", NAME) as terminal:
        assert terminal.wait() == 1
        assert b"stopped (run `iii` in another terminal)" in terminal.seen
        assert b"adding" not in terminal.seen


def test_logs_print_what_there_is_and_follow_goes_on(working: IIIProject) -> None:
    working.assert_callable()
    working.wait_logged("adding 2 and 3")
    done = working.run("worker", "logs", NAME)
    assert done.returncode == 0
    assert done.stdout.decode().splitlines()[-1] == "adding 2 and 3"
    assert "[iii] stored " in done.stderr.decode()
    assert working.run("worker", "logs", NAME, "-n", "0").stdout == b""
    with working.type("worker", "logs", NAME, "--follow") as terminal:
        terminal.expect(rb"adding 2 and 3")
        working.ok("trigger", "math::add", "a=40", "b=2")
        terminal.expect(rb"adding 40 and 2")
        working.ok("worker", "restart", NAME)  # the files are new ones now
        working.wait_callable()
        terminal.expect(rb"worker exited with")
        working.ok("trigger", "math::add", "a=50", "b=6")
        terminal.expect(rb"adding 50 and 6")
        terminal.send(b"\x03")
        assert terminal.wait() == 0
    assert working.stop() == 0
    kept = working.run("worker", "logs", NAME)
    assert (kept.returncode, kept.stdout) == (0, b"math-worker is connected\nadding 50 and 6\n"), "logs need no engine"
    listed = working.run("worker", "list")
    assert listed.returncode == 0
    assert re.search(rf"\n  {NAME} +oci +\S+ +- +stopped\n", listed.stderr.decode()), listed
