"""`iii worker snapshot` with the published SDK in a virtual machine, and where there are none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import trio
from iii_sandbox_guest import fetch_kernel

from iiitools.registry import Registry
from iiitools.worktree import ROOT

from .conftest import WORKER, IIIProject

KERNELS = ROOT / "build" / "guest"
NOTE = "/workspace/note"
MACHINES = "sandbox: {backend: libvirt, backends: {libvirt: {accelerator: tcg}}}\n"


def code_of(done: subprocess.CompletedProcess[bytes]) -> str:
    """The code of the error that a command printed."""
    return done.stderr.decode().partition("error: [")[2][:4]


def states(project: IIIProject) -> list[str]:
    """What there is of the worker's snapshots."""
    folder = project.folder / ".iii" / "snapshots" / WORKER
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def write(project: IIIProject, text: str) -> None:
    project.ok("worker", "exec", WORKER, "--", "sh", "-c", f"echo {text} > {NOTE}; sync")


def read(project: IIIProject) -> str:
    return project.ok("worker", "exec", WORKER, "--", "cat", NOTE).strip()


def said(project: IIIProject) -> str:
    """What iii said of the worker in this run."""
    return project.run("worker", "logs", WORKER, "--stream", "iii").stderr.decode()


# --- where there are none ---


def test_a_backend_without_them_says_so_and_nothing_happens(running: IIIProject) -> None:
    before = running.status()
    done = running.run("worker", "snapshot", WORKER)
    assert (done.returncode, code_of(done)) == (1, "W236")
    assert b"sandbox backend bubblewrap does not support snapshots" in done.stderr
    assert b"hint: " in done.stderr
    after = running.status()
    assert (after["pid"], after["restarts"], after["snapshot"]) == (before["pid"], 0, None)
    assert states(running) == []
    running.assert_callable()


def test_bad_input(running: IIIProject, project: IIIProject) -> None:
    assert code_of(running.run("worker", "snapshot", "nobody")) == "W112"
    assert code_of(running.run("worker", "snapshot", "../x")) == "W100"
    assert code_of(running.run("worker", "snapshot", "iii-worker-manager")) == "W106"
    assert running.run("worker", "snapshot").returncode == 2
    assert json.loads(running.ok("worker", "snapshot", WORKER, "--remove", "--json"))["removed"] is False
    running.ok("worker", "stop", "-y", WORKER)
    assert code_of(running.run("worker", "snapshot", WORKER)) == "W113"
    running.ok("worker", "start", WORKER)
    project.config.write_text(project.config.read_text() + f"  - name: {WORKER}\n    image: example.org/x:1\n")
    assert code_of(project.run("worker", "snapshot", WORKER)) == "W201"
    assert b"has no snapshot" in project.run("worker", "snapshot", WORKER, "--remove").stderr


# --- in virtual machines ---


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[None]:
    """Room for one snapshot, and not for two; only root can have that."""
    folder = tmp_path / ".iii" / "snapshots"
    folder.mkdir(parents=True, mode=0o700)
    if os.geteuid() != 0:
        yield
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=170m,mode=700", "none", folder], check=True)
    yield
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def machines(
    new_project: Callable[[Path, Path], IIIProject], tmp_path: Path, registry: Registry
) -> Iterator[IIIProject]:
    """A project whose ``math-worker`` runs in an emulated machine."""
    KERNELS.mkdir(parents=True, exist_ok=True)
    trio.run(fetch_kernel, KERNELS)
    home = tmp_path / "home"
    home.mkdir()
    (home / "kernels").symlink_to(KERNELS / "kernels")
    project = new_project(tmp_path, home)
    project.config.write_text(MACHINES + project.config.read_text())
    project.ok("worker", "add", f"{registry.address}/{WORKER}:1.0", timeout=150)
    project.start()
    wait(project, "running")
    yield project
    if project.engine is not None:
        project.stop()


def wait(project: IIIProject, status: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while (found := project.status())["status"] != status:
        assert time.monotonic() < deadline, (found, project.engine_log())
        time.sleep(0.3)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_worker_wakes_up_as_it_was(machines: IIIProject) -> None:
    """One story, of few boots: saved while it runs on, woken by restarts and engines, and when it no longer fits."""
    project = machines
    write(project, "saved")
    pid = project.status()["pid"]
    shown = json.loads(project.ok("worker", "snapshot", WORKER, "--json", timeout=100))
    assert shown["size"] > 1 << 20
    assert project.status()["pid"] == pid, "it runs on"
    project.assert_callable()
    write(project, "later")
    assert "(0 " not in project.ok("worker", "status", WORKER, "--no-watch")
    assert len(states(project)) == 2

    project.ok("worker", "restart", WORKER, timeout=100)
    project.assert_callable()
    facts = project.status()
    assert (facts["warm"], facts["restarts"]) == (True, 0)
    assert "started from its snapshot" in said(project)
    assert read(project) == "saved"
    clock = float(project.ok("worker", "exec", WORKER, "--", "date", "+%s"))
    assert abs(clock - time.time()) < 10

    for how in (signal.SIGTERM, signal.SIGKILL):
        write(project, "later")
        project.stop(how)
        project.start()
        wait(project, "running")
        project.assert_callable()
        assert project.status()["warm"] is True
        assert read(project) == "saved"

    project.ok("worker", "snapshot", WORKER, timeout=100)  # of a copy
    project.assert_callable()
    assert len(states(project)) == 2

    text = project.config.read_text()
    project.config.write_text(text.replace("OTEL_ENABLED: 'false'", "OTEL_ENABLED: 'false'\n      LEVEL: 2"))
    assert project.config.read_text() != text
    deadline = time.monotonic() + 60
    while "of another environment" not in said(project):
        assert time.monotonic() < deadline, (said(project), project.engine_log())
        time.sleep(0.3)
    wait(project, "running")
    assert "[W238]" in said(project)
    assert project.status()["warm"] is False
    project.assert_callable()

    assert b"is deleted" in project.run("worker", "snapshot", WORKER, "--remove").stderr
    assert project.status()["snapshot"] is None
    assert not (project.folder / ".iii" / "snapshots" / WORKER).exists()


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("small_disk")
def test_what_goes_wrong_while_it_is_saved_or_woken(machines: IIIProject) -> None:
    """Ctrl-C, a machine that is killed, a full disk, damage: the snapshot of before stays, and the worker is there."""
    project = machines
    project.ok("worker", "snapshot", WORKER, timeout=100)
    kept = states(project)
    for seconds in (0.5, 1.5):
        saving = project.popen("worker", "snapshot", WORKER)
        time.sleep(seconds)
        saving.send_signal(signal.SIGINT)
        saving.communicate(timeout=60)
        wait(project, "running")
        assert len(states(project)) == 2
        project.assert_callable()
    if os.geteuid() == 0:
        done = project.run("worker", "snapshot", WORKER, timeout=100)
        assert (done.returncode, code_of(done)) == (1, "W230"), done.stderr
        assert b"No space left on device" in done.stderr
        assert b"hint: make room" in done.stderr
        assert states(project) == kept
        wait(project, "running")
        project.assert_callable()
    assert project.status()["restarts"] == 0
    state = project.folder / ".iii" / "snapshots" / WORKER / kept[1]
    os.truncate(state / "memory", 1 << 20)
    project.ok("worker", "restart", WORKER, timeout=100)
    assert "[W238] the memory in" in said(project)
    assert project.status()["warm"] is False
    project.assert_callable()

    saving = project.popen("worker", "snapshot", WORKER)
    deadline = time.monotonic() + 20
    while project.status()["status"] != "saving":
        assert time.monotonic() < deadline
    psutil.Process(project.status()["pid"]).kill()
    _, printed = saving.communicate(timeout=60)
    assert saving.returncode == 1, printed
    assert b"error: [W" in printed
    wait(project, "running")
    assert (project.status()["warm"], states(project)) == (False, kept)
    project.assert_callable()
    project.ok("worker", "remove", "-y", WORKER)
    assert states(project) == []
