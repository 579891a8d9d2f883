"""Whatever dies, what is left is in order: one test for each row of the process model's table.

| dies | what happens |
|---|---|
| the worker | its exit status is told, the restart policy decides |
| the agent, or bwrap | the end and the console are told, the restart policy decides, nothing of the sandbox is left |
| the sandbox host | the engine says so, sweeps what it left, starts another and the workers anew |
| the engine | the sandbox host destroys everything |
| the engine and the sandbox host | the agents see their link end; the next start sweeps what is left |
| the command line | its exec session ends, nothing else |
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from iii_core.sandbox.host_processes import ProcessId, ProcessRecords
from iii_core.workers.spec import sandbox_id
from iiitools.processes import still_running
from iiitools.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from conftest import IIIProject

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]
NAME = "math-worker"
ENTER = ("worker", "exec", NAME)
WORKER_PID = "$(ps | awk '/worker.py/ && !/awk/ {print $1}')"
WORKER_PID_OF = f"echo {WORKER_PID}"
AT_ONCE = 10.0
"""Seconds: far less than the agent's dead-man timer, so what ends by then saw its link end."""


def sandbox_groups(project: IIIProject) -> set[Path]:
    """The control groups of this worker's sandboxes, whoever made them; other projects may have such a worker too."""
    namespace = Path("/proc/self/ns/pid").stat().st_ino
    name = re.compile(rf"iii\..*\.{namespace}\.{sandbox_id(str(project.folder), NAME)}")
    walk = os.walk("/sys/fs/cgroup")  # unlike a glob, it does not mind that others' groups come and go
    return {Path(folder, group) for folder, groups, _ in walk for group in groups if name.fullmatch(group)}


def files_below(folder: Path) -> set[str]:
    """Paths below a folder, but for what is kept: logs and the content of writable layers."""
    return {
        path
        for found in folder.rglob("*")
        if not (path := str(found.relative_to(folder))).startswith(("logs/", f"writable/{NAME}/"))
    }


def log_of(project: IIIProject, *options: str) -> str:
    return project.run("worker", "logs", NAME, *options).stderr.decode()


def assert_gone(processes: list[psutil.Process], within: float) -> None:
    assert not still_running(processes, within=within)


@contextmanager
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that would run for long."""
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            yield process
        finally:
            process.kill()


def record_of(process: subprocess.Popen[bytes]) -> ProcessId:
    found = ProcessId.of(process.pid)
    assert found is not None
    return found


@contextmanager
def leftovers(project: IIIProject) -> Iterator[tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]]:
    """A process that the sandbox host is on record to have started, and one whose number alone is on record."""
    (folder,) = project.runtime.rglob("processes")
    records = ProcessRecords(folder)
    with sleeper() as recorded, sleeper() as innocent:
        records.add(record_of(recorded))
        records.add(ProcessId(innocent.pid, record_of(innocent).started - 1))
        yield recorded, innocent
        assert recorded.wait(PATIENCE) == -signal.SIGKILL
        assert innocent.poll() is None


def test_the_worker_dies(working: IIIProject) -> None:
    before = working.status()
    working.run(*ENTER, "--", "sh", "-c", f"kill -9 {WORKER_PID}")
    after = working.wait_restarted()
    assert after["last_exit"] == "signal 9"
    assert after["restarts"] == 1
    assert after["pid"] != before["pid"]
    assert "[iii] worker exited with signal 9" in log_of(working, "--previous")
    working.wait_callable()
    working.assert_callable()


@pytest.mark.parametrize("victim", ["agent", "bwrap"])
def test_the_agent_or_its_launcher_dies(working: IIIProject, victim: str) -> None:
    state = working.folder / ".iii"
    working.ok("worker", "stop", "-y", NAME)

    def left() -> tuple[set[str], set[Path]]:
        return files_below(state) | files_below(working.runtime), sandbox_groups(working)

    orderly = left()
    working.ok("worker", "start", NAME)
    before = working.status()
    launcher = psutil.Process(before["pid"])
    (agent,) = launcher.children()
    sandbox = [launcher, *launcher.children(recursive=True)]
    (launcher if victim == "bwrap" else agent).kill()
    assert_gone(sandbox, AT_ONCE)

    after = working.wait_restarted()
    assert re.fullmatch(r"its sandbox ended by itself \((signal 9|exit 137)\)", after["last_exit"]), after
    assert after["restarts"] == 1
    assert after["pid"] != before["pid"]
    assert sandbox_groups(working) or not os.access("/sys/fs/cgroup", os.W_OK)
    told = log_of(working, "--previous")
    assert re.search(rf"\[iii\] \[W234\] the sandbox of worker '{NAME}' ended by itself \(\w+ \d+\)", told), told
    assert "last exit:  its sandbox ended by itself" in working.run("worker", "status", NAME).stderr.decode()
    working.wait_callable()
    working.assert_callable()
    working.ok("worker", "stop", "-y", NAME)
    assert left() == orderly


def test_the_console_of_a_dead_sandbox_is_told(working: IIIProject) -> None:
    """What its helpers last said is in the worker's log, and what an earlier one said is not."""
    console = working.folder / ".iii" / "logs" / NAME / "console.log"
    launcher = psutil.Process(working.status()["pid"])
    with console.open("ab") as file:  # as bwrap and the agent write it
        file.write(b"the last words of this sandbox\n")
    launcher.kill()
    working.wait_restarted()
    assert "[iii] console: the last words of this sandbox" in log_of(working, "--previous")
    psutil.Process(working.status()["pid"]).kill()
    working.wait_restarted(2)
    assert "last words" not in log_of(working, "--previous")


def test_the_sandbox_host_dies(working: IIIProject) -> None:
    before = working.status()
    host = working.sandbox_host()
    children = working.descendants()
    with leftovers(working):
        host.kill()
        assert_gone(children, AT_ONCE)
        after = working.wait_restarted()
    assert "the sandbox host died (signal 9)" in working.engine_log()
    assert "[W237]" in log_of(working, "--previous")
    assert working.sandbox_host().pid != host.pid
    assert after["pid"] != before["pid"]
    working.wait_callable()
    working.assert_callable()


def test_the_engine_dies(working: IIIProject) -> None:
    children = working.descendants()
    working.stop(signal.SIGKILL)
    assert_gone(children, AT_ONCE)
    assert not sandbox_groups(working)
    working.start()
    assert working.wait_running()["restarts"] == 0
    working.wait_callable()
    working.assert_callable()


def test_the_engine_and_the_sandbox_host_die(working: IIIProject) -> None:
    """Nobody is left to tidy up, and yet nothing runs on; the next start sweeps what they could not."""
    assert working.engine is not None
    host = working.sandbox_host()
    children = working.descendants()
    (folder,) = working.runtime.rglob("processes")
    with leftovers(working) as (recorded, _):
        engine = psutil.Process(working.engine.pid)
        for process in (engine, host):  # so that neither sees the other's end
            process.suspend()
            wait_until(lambda process=process: process.status() == psutil.STATUS_STOPPED)
        host.kill()
        working.stop(signal.SIGKILL)
        assert_gone(children, AT_ONCE)
        assert recorded.poll() is None, "there is nobody who could have swept it"
        stale = {record.name for record in folder.iterdir()}
        assert any(name.startswith(f"{host.pid}.") for name in stale)
        working.start()
        working.wait_running()
        assert not stale & {record.name for record in folder.iterdir()}
    owners = {group.name.split(".")[1] for group in sandbox_groups(working)}
    assert owners <= {str(working.sandbox_host().pid)}
    working.wait_callable()
    working.assert_callable()


def test_the_command_line_dies(running: IIIProject) -> None:
    before = running.status()
    session = running.popen(*ENTER, "--", "sh", "-c", "echo ready; exec sleep 4321")
    other = running.popen(*ENTER, "--", "sh", "-c", "echo ready; read line; echo got $line")
    assert session.stdout is not None
    assert other.stdout is not None
    assert session.stdout.readline() == other.stdout.readline() == b"ready\n"
    session.kill()
    session.communicate()
    wait_until(lambda: "sleep 4321" not in running.ok(*ENTER, "--", "ps"), within=AT_ONCE)
    assert other.communicate(b"this\n", timeout=PATIENCE)[0] == b"got this\n"
    after = running.status()
    assert (after["pid"], after["restarts"]) == (before["pid"], before["restarts"])
    running.assert_callable()


@pytest.mark.long
def test_nothing_dies(running: IIIProject) -> None:
    """An idle worker stays: 30 s are longer than a thread of a pool lives, whose end would take its children along."""
    before = running.status()["pid"], running.status()["restarts"], running.ok(*ENTER, "--", "sh", "-c", WORKER_PID_OF)
    time.sleep(30)  # the very point of this test is that nothing happens for 30 s
    running.assert_callable()
    after = running.status()["pid"], running.status()["restarts"], running.ok(*ENTER, "--", "sh", "-c", WORKER_PID_OF)
    assert after == before


@pytest.mark.long
def test_a_frozen_agent(working: IIIProject) -> None:
    """Who waits for it is told that the sandbox is the trouble, not the engine; and the worker is started anew."""
    before = working.status()
    (agent,) = psutil.Process(before["pid"]).children()
    agent.suspend()
    done = working.run(*ENTER, "--", "true")
    assert done.returncode != 0
    assert b"[W234] the sandbox of worker" in done.stderr
    after = working.wait_restarted()
    assert after["pid"] != before["pid"]
    assert "did not answer any more, and was ended" in log_of(working, "--previous")
    working.wait_callable()
    working.assert_callable()


@pytest.mark.full
def test_a_frozen_sandbox_host_does_not_keep_the_engine_from_ending(working: IIIProject) -> None:
    children = working.descendants()
    working.sandbox_host().suspend()
    assert working.stop(signal.SIGINT, timeout=80) == 0
    assert_gone(children, AT_ONCE)
