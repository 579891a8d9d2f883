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
from iiitools.waiting import PATIENCE, wait_until
from iiitools.worktree import ROOT

from .conftest import WORKER, IIIProject

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]
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
    running.wait_callable()
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
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=170m,mode=700", "iii-tests", folder], check=True)
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


def wait(project: IIIProject, status: str) -> None:
    wait_until(lambda: project.status()["status"] == status, within=120, told=project.engine_log)
    if status == "running":
        project.wait_callable()


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_worker_wakes_up_as_it_was(machines: IIIProject) -> None:
    """One story, of few boots: saved while it runs on, woken by restarts and engines, and when it no longer fits."""
    project = machines
    write(project, "saved")
    pid = project.status()["pid"]
    shown = json.loads(project.ok("worker", "snapshot", WORKER, "--json", timeout=150))
    assert shown["size"] > 1 << 20
    assert project.status()["pid"] == pid, "it runs on"
    project.wait_callable()
    project.assert_callable()
    write(project, "later")
    assert "(0 " not in project.ok("worker", "status", WORKER, "--no-watch")
    assert len(states(project)) == 2

    project.ok("worker", "restart", WORKER, timeout=150)
    project.wait_callable()
    project.assert_callable()
    facts = project.status()
    assert (facts["warm"], facts["restarts"]) == (True, 0)
    assert "started from its snapshot" in said(project)
    assert read(project) == "saved"
    asked = time.time()
    clock = float(project.ok("worker", "exec", WORKER, "--", "date", "+%s"))
    assert asked - 10 < clock < time.time() + 10

    for how in (signal.SIGTERM, signal.SIGKILL):
        write(project, "later")
        project.stop(how)
        project.start()
        wait(project, "running")
        project.assert_callable()
        assert project.status()["warm"] is True
        assert read(project) == "saved"

    project.ok("worker", "snapshot", WORKER, timeout=150)  # of a copy
    project.wait_callable()
    project.assert_callable()
    assert len(states(project)) == 2

    text = project.config.read_text()
    project.config.write_text(text.replace("OTEL_ENABLED: 'false'", "OTEL_ENABLED: 'false'\n      LEVEL: 2"))
    assert project.config.read_text() != text
    wait_until(lambda: "of another environment" in said(project), told=project.engine_log)
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
    project.ok("worker", "snapshot", WORKER, timeout=150)
    for seconds in (0.5, 1.5):
        saving = project.popen("worker", "snapshot", WORKER)
        time.sleep(seconds)
        saving.send_signal(signal.SIGINT)
        saving.communicate(timeout=PATIENCE)
        wait(project, "running")
        assert len(states(project)) == 2
        project.assert_callable()
    kept = states(project)
    if os.geteuid() == 0:
        done = project.run("worker", "snapshot", WORKER, timeout=150)
        assert (done.returncode, code_of(done)) == (1, "W230"), done.stderr
        assert b"No space left on device" in done.stderr
        assert b"hint: make room" in done.stderr
        assert states(project) == kept
        wait(project, "running")
        project.assert_callable()
    assert project.status()["restarts"] == 0
    state = project.folder / ".iii" / "snapshots" / WORKER / kept[1]
    os.truncate(state / "memory", 1 << 20)
    project.ok("worker", "restart", WORKER, timeout=150)
    project.wait_callable()
    assert "[W238] the memory in" in said(project)
    assert project.status()["warm"] is False
    project.assert_callable()

    machine = psutil.Process(project.status()["pid"])
    saving = project.popen("worker", "snapshot", WORKER)
    deadline = time.monotonic() + PATIENCE
    while states(project) == kept:  # it stands still, which may be for a second only
        assert time.monotonic() < deadline
        time.sleep(0.002)
    machine.kill()
    _, printed = saving.communicate(timeout=PATIENCE)
    assert saving.returncode == 1, printed
    assert b"error: [W" in printed
    wait(project, "running")
    assert (project.status()["warm"], states(project)) == (False, kept)
    project.assert_callable()
    project.ok("worker", "remove", "-y", WORKER)
    assert states(project) == []
