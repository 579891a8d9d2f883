"""Records of processes and their sweep: only the very process that was noted is ever killed."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from iii_core.sandbox.host_processes import ProcessId, ProcessRecords, spawn

BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as running:
        try:
            yield running
        finally:
            running.kill()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "processes"


def identity(process: subprocess.Popen[bytes]) -> ProcessId:
    found = ProcessId.of(process.pid)
    assert found is not None
    return found


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_recorded_process_is_killed_and_forgotten(folder: Path, process: subprocess.Popen[bytes]) -> None:
    ProcessRecords(folder).add(identity(process))
    assert names(folder) == {f"{process.pid}.{identity(process).started}.{BOOT}"}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert ProcessRecords(folder).sweep() == [ProcessId(process.pid, int(_started(process)))]
    assert process.wait(30) == -signal.SIGKILL
    assert names(folder) == set()
    assert ProcessRecords(folder).sweep() == []


def _started(process: subprocess.Popen[bytes]) -> str:
    """Field 22 of proc_pid_stat(5), read another way: a zombie still has it."""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2].split()[19]


@pytest.mark.parametrize("offset", [-1, 1])
def test_a_reused_number_is_another_process(folder: Path, process: subprocess.Popen[bytes], offset: int) -> None:
    there = identity(process)
    ProcessRecords(folder).add(ProcessId(there.pid, there.started + offset))
    assert ProcessRecords(folder).sweep() == []
    assert process.poll() is None
    assert names(folder) == set(), "who is dead is forgotten"


def test_a_record_of_another_boot_names_nobody(folder: Path, process: subprocess.Popen[bytes]) -> None:
    there = identity(process)
    folder.mkdir()
    other = "0" * 8 + BOOT[8:] if not BOOT.startswith("0" * 8) else "1" * 8 + BOOT[8:]
    (folder / f"{there.pid}.{there.started}.{other}").touch()
    assert ProcessRecords(folder).sweep() == []
    assert process.poll() is None
    assert names(folder) == set()


def test_what_is_no_record_is_left_alone(folder: Path, process: subprocess.Popen[bytes]) -> None:
    there = identity(process)
    folder.mkdir()
    strangers = {
        "notes.txt",
        f"{there.pid}",
        f"{there.pid}.{there.started}",
        f"0{there.pid}.{there.started}.{BOOT}",
        f"-{there.pid}.{there.started}.{BOOT}",
        f"{there.pid}.{there.started}.{BOOT}.tmp",
        f"{there.pid}.{there.started}.nonsense",
        f"٣{there.pid}.{there.started}.{BOOT}",
        f"{there.pid}.{there.started}\n.{BOOT}",
        f"99999999999999.{there.started}.{BOOT}",
    }
    for name in strangers:
        (folder / name).touch()
    (folder / f"{there.pid}.{there.started}.{BOOT}").mkdir()
    (folder / f"{there.pid}.1.{BOOT}").symlink_to(folder / "notes.txt")
    before = names(folder)
    assert ProcessRecords(folder).sweep() == []
    assert process.poll() is None
    assert names(folder) == before


def test_numbers_that_no_process_can_have_are_forgotten(folder: Path) -> None:
    folder.mkdir()
    for name in (f"4294967296.1.{BOOT}", f"9999999999.9999999999999999999.{BOOT}", f"2147483647.0.{BOOT}"):
        (folder / name).touch()
    assert ProcessRecords(folder).sweep() == []
    assert names(folder) == set()


def test_one_that_has_ended_is_not_killed(folder: Path, process: subprocess.Popen[bytes]) -> None:
    """A zombie counts as ended: its number is still taken, but there is nothing left to kill."""
    there = identity(process)
    ProcessRecords(folder).add(there)
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert ProcessId.of(process.pid) is None
    assert not there.alive()
    assert there.kill()
    assert ProcessRecords(folder).sweep() == []
    assert names(folder) == set()


def test_no_folder_is_nothing_to_sweep(folder: Path) -> None:
    assert ProcessRecords(folder).sweep() == []
    assert not folder.exists()


def test_a_process_whose_name_is_a_trap(tmp_path: Path) -> None:
    """The name in /proc/PID/stat may hold what separates fields there."""
    trap = tmp_path / ") S 1 1"
    trap.symlink_to("/bin/sleep")
    with subprocess.Popen([trap, "600"]) as process:
        try:
            assert ") S 1 1" in Path(f"/proc/{process.pid}/stat").read_text()
            assert identity(process).started == int(_started(process))
        finally:
            process.kill()


async def test_a_spawned_process_is_on_record_until_it_is_reaped(folder: Path) -> None:
    process = spawn(["sleep", "600"], records=ProcessRecords(folder))
    assert process.identity is not None
    assert names(folder) == {f"{process.pid}.{process.identity.started}.{BOOT}"}
    process.end()
    assert names(folder) == set()
    assert await process.wait() == -signal.SIGKILL
    process.end()  # nothing left to do
