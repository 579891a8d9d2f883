"""Each way a machine may lack something, arranged for real: what is missing, and the command that puts it right."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from iii_sandbox_bubblewrap import probe as probing
from iii_sandbox_bubblewrap.policy import Settings
from iii_sandbox_bubblewrap.probe import probe

from iii_core.errors import BackendUnavailable
from iii_core.records import OpenContext, ProbeResult

pytestmark = pytest.mark.integration
HERE = Path(__file__).parent
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes things away from itself, which needs root")


def with_programs(context: OpenContext, folder: Path, *names: str) -> OpenContext:
    """A PATH that has these programs alone."""
    folder.mkdir()
    for name in names:
        (folder / name).symlink_to(shutil.which(name) or "")
    return replace(context, environ={"PATH": str(folder)})


def refused(found: ProbeResult) -> tuple[str, str]:
    assert not found.ok
    assert found.reason
    assert found.hint
    return found.reason, found.hint


@pytest.mark.parametrize("unprivileged", [False, True])
async def test_it_works_here(context: OpenContext, unprivileged: bool) -> None:
    found = await probe(Settings(unprivileged=unprivileged), context)
    assert found.ok, found
    assert isinstance(found.details["notes"], list)
    assert not list(context.runtime_dir.glob("probe-*"))


async def test_no_bwrap(context: OpenContext, tmp_path: Path) -> None:
    found = await probe(Settings(), with_programs(context, tmp_path / "bin"))
    assert refused(found) == ("bwrap is not installed", "apt install bubblewrap")


async def test_no_squashfuse(context: OpenContext, tmp_path: Path) -> None:
    found = await probe(Settings(unprivileged=True), with_programs(context, tmp_path / "bin", "bwrap"))
    assert refused(found) == ("squashfuse is not installed", "apt install squashfuse")


async def test_not_bwrap(context: OpenContext) -> None:
    reason, hint = refused(await probe(Settings(program="false"), context))
    assert "ended while booting (exit 1)" in reason
    assert hint.endswith("false --unshare-all --ro-bind / / true")


async def test_old_bwrap(context: OpenContext, tmp_path: Path) -> None:
    old = tmp_path / "bwrap"
    code = 'int main(void) { puts("bwrap: Unknown option --size"); return 1; }'
    compiler = ["cc", "-static", "-include", "stdio.h", "-x", "c", "-", "-o", old]
    await trio.run_process(compiler, stdin=code.encode())
    reason, hint = refused(await probe(Settings(program=str(old)), context))
    assert "Unknown option --size" in reason
    assert hint.startswith("bubblewrap 0.7 or later")


async def test_no_agent(context: OpenContext, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise BackendUnavailable("the guest agent is missing", hint="reinstall iii-sandbox-guest")

    monkeypatch.setattr("iii_sandbox_guest.agent_path", missing)
    assert refused(await probe(Settings(), context)) == ("the guest agent is missing", "reinstall iii-sandbox-guest")


async def test_too_slow(context: OpenContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "PROBE_TIMEOUT", 0.01)
    reason, _ = refused(await probe(Settings(), context))
    assert reason == "a guest's agent did not answer within 0.01 s"
    assert not list(context.runtime_dir.glob("probe-*"))


def elsewhere(tmp_path: Path, *wrapper: str) -> dict[str, Any]:
    """Probe in another process, after ``wrapper`` has taken something away."""
    done = subprocess.run(
        [*wrapper, sys.executable, HERE / "proberunner.py", tmp_path],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=50,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def in_container(*take_away: str) -> tuple[str, ...]:
    """Root of a rootless container, which the machine's devices don't belong to, after commands of real root."""
    return ("unshare", "--mount", "sh", "-ec", "; ".join((*take_away, 'exec unshare --user -r "$@"')), "sh")


BARE_DEV = ("mount -t tmpfs none /dev", "mknod -m 666 /dev/null c 1 3")


@as_root
def test_no_fuse(tmp_path: Path) -> None:
    found = elsewhere(tmp_path, *in_container(*BARE_DEV))
    assert (found["ok"], found["reason"], found["hint"]) == (False, "there is no /dev/fuse", "as root: modprobe fuse")


@as_root
def test_fuse_for_others_only(tmp_path: Path) -> None:
    node = tmp_path / "fuse"
    arrange = (f"mknod -m 600 {node} c 10 229", f"chown 12345 {node}", f"mount --bind {node} /dev/fuse")
    found = elsewhere(tmp_path, *in_container(*arrange))
    assert found["reason"] == "/dev/fuse may not be opened"
    assert found["hint"] == "as root: chmod 666 /dev/fuse"


@as_root
def test_no_user_namespaces(tmp_path: Path) -> None:
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    found = elsewhere(tmp_path, "unshare", "--user", "--map-root-user", "sh", "-ec", forbid, "sh")
    assert not found["ok"]
    assert "namespaces for sandboxes cannot be made" in found["reason"]
    assert found["hint"] == "as root: sysctl user.max_user_namespaces=15000"


@as_root
def test_root_of_a_rootless_container(tmp_path: Path) -> None:
    """It may mount no block device, so it goes the way of ordinary users."""
    found = elsewhere(tmp_path, "unshare", "--user", "--map-root-user")
    assert found["ok"], found
    assert not [note for note in found["details"]["notes"] if "root of this machine" in note]


@as_root
def test_no_loop_device(tmp_path: Path) -> None:
    found = elsewhere(tmp_path, "unshare", "--mount", "sh", "-ec", "; ".join((*BARE_DEV, 'exec "$@"')), "sh")
    assert not found["ok"]
    assert "modprobe loop" in found["hint"], found
