"""Folders of the machine, seen by a guest; and all that is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from iii_sandbox_libvirt import checks, needs, plugin

from iii_core.errors import BootFailed, SandboxError, SandboxHostDied, UnsupportedOperation
from iii_core.records import OpenContext
from iii_core.sandbox.agent import Agent
from iii_core.sandbox.ids import SANDBOX_IDS
from iii_core.sandbox.port import Capability, Mount, RootImage, SandboxSpec, Snapshots
from iii_core.testing.sandbox_harness import TESTS, descendants, run, run_well

from .vmkit import HERE, HOME, Bench, agent_of, python

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can show folders to a guest")
pytestmark = [pytest.mark.integration, pytest.mark.timeout(300), as_root]


@pytest.fixture
def shown(tmp_path: Path) -> Generator[Path]:
    """A folder with an awkward name, another file system below it, and links that lead out of it."""
    folder = tmp_path / "a b,c:d"
    below = folder / "below"
    below.mkdir(parents=True)
    folder.chmod(0o777)
    (folder / "hello").write_text("from outside", encoding="utf-8")
    (folder / "secret").touch(mode=0o600)
    (tmp_path / "beside").write_text("not shown", encoding="utf-8")
    (folder / "up").symlink_to("../beside")
    (folder / "away").symlink_to(tmp_path / "beside")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0777", TESTS, below], check=True)
    (below / "deep").write_text("deep", encoding="utf-8")
    yield folder
    subprocess.run(["umount", below], check=True)


def with_mounts(bench: Bench, *mounts: Mount, image: RootImage | None = None) -> SandboxSpec:
    return replace(bench.spec(image=image), mounts=mounts)


def servers(root: int | None = None) -> list[int]:
    """Processes below one (this one) that serve folders, or are about to."""
    lines = (line.split(maxsplit=1) for line in descendants(root or os.getpid(), zombies=False))
    return [int(pid) for pid, name in lines if name.startswith("virtiofsd")]


async def refused(agent: Agent, *argv: str) -> str:
    status, printed = await run(agent, argv)
    assert status.as_shell() != 0, argv
    return printed


async def test_what_is_seen(bench: Bench, shown: Path, tmp_path: Path) -> None:
    """One boot, many looks."""
    spec = with_mounts(
        bench,
        Mount(source=shown, target="/data"),
        Mount(source=shown, target="/tmp/rw:%", writable=True),  # the sandbox's own, and an awkward name
        Mount(source=shown, target="/run/x/y z"),
    )
    with bench.nothing_remains():
        async with bench.sandbox(spec) as (driver, agent):
            await look_around(agent)
            await look_at_writes(agent, shown)
            await look_for_ways_out(agent)
            assert f"user id {SANDBOX_IDS} of this machine" in " ".join((await driver.state(spec.id)).notes)
            look_at_servers()
            assert isinstance(driver, Snapshots)
            with pytest.raises(UnsupportedOperation, match="mounted folders, whose state cannot be saved"):
                await driver.save(spec.id, tmp_path / "saved")
            await remove_source(agent, shown)
        assert servers() == []


async def look_around(agent: Agent) -> None:
    for target in ("/data", "/run/x/y z", "/tmp/rw:%"):
        assert await run_well(agent, ("/bin/cat", f"{target}/hello", f"{target}/below/deep")) == "from outsidedeep"
    rows = [line.split() for line in (await run_well(agent, ("/bin/cat", "/proc/mounts"))).splitlines()]
    flags = {row[1]: {row[2], *row[3].split(",")} for row in rows}
    for target, access in (("/data", "ro"), ("/run/x/y\\040z", "ro"), ("/tmp/rw:%", "rw")):
        assert flags[target] >= {"virtiofs", "nosuid", "nodev", access}, flags


async def look_at_writes(agent: Agent, shown: Path) -> None:
    for path in ("/data/x", "/data/below/x", "/run/x/y z/below/x"):
        assert "Read-only" in await refused(agent, "/bin/touch", path)
    await run_well(agent, ("/bin/touch", "/tmp/rw:%/mine", "/tmp/rw:%/below/mine"))
    await run_well(agent, ("/bin/touch", "/tmp/rw:%/theirs"), uid=1000)
    owners = [path.stat() for path in (shown / "mine", shown / "below" / "mine", shown / "theirs")]
    assert [(found.st_uid, found.st_gid) for found in owners] == [
        (SANDBOX_IDS + inside, SANDBOX_IDS + inside) for inside in (0, 0, 1000)
    ]
    assert await run_well(agent, ("/bin/stat", "-c", "%u", "/data/mine", "/data/theirs")) == "0\n1000\n"
    await run_well(agent, ("/bin/sh", "-c", "cp /bin/busybox /tmp/rw:%/busybox && chmod u+s /tmp/rw:%/busybox"))
    assert (shown / "busybox").stat().st_uid == SANDBOX_IDS, "root's programs must not come from a guest"


async def look_for_ways_out(agent: Agent) -> None:
    """What only root of the machine may read or write is neither, and a link leads where it leads inside."""
    for argv in (
        ("/bin/cat", "/data/secret"),
        ("/bin/sh", "-c", "echo > /tmp/rw:%/hello"),
        ("/bin/mount", "-o", "remount,rw", "/data"),
        ("/bin/mknod", "/tmp/rw:%/node", "c", "1", "1"),
    ):
        said = await refused(agent, *argv)
        assert "denied" in said or "permitted" in said, (argv, said)
    for path in ("/data/up", "/data/away", "/data/../beside"):
        assert "No such file" in await refused(agent, "/bin/cat", path)


def look_at_servers() -> None:
    """Nobody of this machine, locked into the folder."""
    inner = [pid for pid in servers() if "\nSeccomp:\t2\n" in Path(f"/proc/{pid}/status").read_text(encoding="ascii")]
    assert len(inner) == 3
    for pid in servers():
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
        assert f"\nUid:\t{SANDBOX_IDS}\t{SANDBOX_IDS}\t" in status
        assert Path(f"/proc/{pid}/ns/user").readlink() != Path("/proc/self/ns/user").readlink()
    for pid in inner:
        assert "hello" in {path.name for path in Path(f"/proc/{pid}/root").iterdir()}


async def remove_source(agent: Agent, shown: Path) -> None:
    """Of a folder that is gone nothing can be seen any more; the guest goes on."""
    for path in await trio.Path(shown).iterdir():
        if path.name != "below":
            await path.unlink()
    await trio.Path(shown).rename(shown.with_name("gone"))
    with trio.fail_after(40):  # for a second of its own time a guest believes what it has seen
        while "No such file" not in (await run(agent, ("/bin/cat", "/data/hello")))[1]:
            pass
    assert await run_well(agent, ("/bin/ls", "/data")) == "below\n"
    await trio.Path(shown.with_name("gone")).rename(shown)


async def test_a_source_that_changed(bench: Bench, tmp_path: Path) -> None:
    """Between ``create`` and ``start``: the link is followed to where it leads now, which is looked at again."""
    folder = tmp_path / "folder"
    folder.mkdir()
    private = (bench.context.home, bench.context.runtime_dir, bench.spec().writable_dir, Path("/run"))
    spec = with_mounts(bench, Mount(source=folder, target="/data"))
    with bench.nothing_remains():
        async with bench.driver() as driver:
            for source in private:
                source.mkdir(exist_ok=True, parents=True)
                with pytest.raises(SandboxError, match="may not be seen inside"):
                    await driver.create(with_mounts(bench, Mount(source=source, target="/data")))
            await driver.create(spec)
            await trio.Path(folder).rename(folder.with_name("moved"))
            with pytest.raises(SandboxError, match=r"cannot be mounted: .*No such file"):
                await driver.start(spec.id)
            await trio.Path(folder).symlink_to("/proc")
            with pytest.raises(SandboxError, match="/proc may not be seen inside"):
                await driver.start(spec.id)


async def test_a_guest_does_not_outlive_a_server(bench: Bench, shown: Path) -> None:
    with bench.nothing_remains():
        async with bench.sandbox(with_mounts(bench, Mount(source=shown, target="/data"))) as (driver, _):
            os.kill(servers()[0], signal.SIGKILL)
            with trio.fail_after(40):
                assert (await driver.events().receive()).id == "box"
            assert servers() == []


async def test_servers_end_with_the_sandbox_host(bench: Bench, shown: Path) -> None:
    spec = with_mounts(bench, Mount(source=shown, target="/data"), Mount(source=shown, target="/more"))
    async with bench.driver() as driver:
        await driver.create(spec)
        await driver.start(spec.id)
        async with agent_of(driver, spec.id) as agent:
            await run_well(agent, ("/bin/cat", "/more/hello"))
            descriptors = [os.pidfd_open(pid) for pid in servers()]
            assert len(descriptors) == 4  # each has a child, which does the work
            host = next(line for line in descendants(os.getpid()) if line.split()[1].startswith("python"))
            os.kill(int(host.split()[0]), signal.SIGKILL)
            with trio.fail_after(40):
                for descriptor in descriptors:
                    await trio.lowlevel.wait_readable(descriptor)
                    os.close(descriptor)
        with pytest.raises(SandboxHostDied):
            await driver.state(spec.id)


async def test_the_image_cannot_lead_a_mount_elsewhere(bench: Bench, shown: Path) -> None:
    """Nor can what ran in the guest before."""
    async with bench.driver() as driver:
        await driver.create(bench.spec())
        await driver.start("box")
        async with agent_of(driver, "box") as agent:
            await run_well(agent, ("/bin/sh", "-c", "mkdir /here && cp -s /bin/busybox /link; touch /file"))
            await agent.power_off(1)
        await driver.destroy("box", keep_writable=True)
        for target, wrong in (("/link/x", "link"), ("/file", "file")):
            await driver.create(with_mounts(bench, Mount(source=shown, target=target)))
            with pytest.raises((BootFailed, SandboxError), match=f"{target}: {wrong} is a link or file"):
                await start_and_fail(bench, driver)
            await driver.destroy("box", keep_writable=True)


async def start_and_fail(bench: Bench, driver: Any) -> None:
    """A guest that cannot boot powers off, which is an event; what it said is on its console."""
    await driver.start("box")
    with trio.fail_after(100):
        event = await driver.events().receive()
    raise SandboxError(event.console_tail)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, image: RootImage, kernel: Path) -> dict[str, Any]:
    """What `mountrunner` finds out."""
    folder = tmp_path_factory.mktemp("mounts")
    command = ["unshare", "--mount", *python(HERE / "mountrunner.py", image.path, HOME, folder)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_writes_are_refused_on_this_side(found: dict[str, Any]) -> None:
    """Also to a guest whose own kernel would let them pass."""
    assert "rw" in found["guest-flags"]
    assert "Read-only file system" in found["write"]
    assert "Read-only file system" in found["remove"]
    assert found["files"] == ["hello"]


def test_a_server_that_fails_is_told(found: dict[str, Any]) -> None:
    assert found["silent"].startswith("W232 ")
    assert "virtiofsd, which shows a mounted folder, ended with 1" in found["silent"]
    assert "namespaces" in found["silent"]
    assert "unrecognized option '--fd=" in found["talking"], "what it said is lost"
    assert found["absent"].startswith("W230 ")
    assert "cannot be mounted: No such file" in found["absent"]
    assert found["left"] == []


async def test_what_mounts_need(monkeypatch: pytest.MonkeyPatch, context: OpenContext) -> None:
    assert needs.find_mounts_lack() is None
    assert (await checks.check_mounts(context)).status == "ok"
    with monkeypatch.context() as patch:
        patch.setattr(needs, "VIRTIOFSD", "/nonexistent/virtiofsd")
        lack = needs.find_mounts_lack()
        assert lack is not None
        assert "apt install" in lack.hint
        row = await checks.check_mounts(context)
        assert (row.status, row.hint) == ("warning", lack.hint)
        (backend,) = plugin.iii_sandbox_backends()
        assert Capability.MOUNTS not in backend.capabilities
        assert backend.lacks[Capability.MOUNTS] == lack
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    lack = needs.find_mounts_lack()
    assert lack is not None
    assert "only root" in lack.reason
