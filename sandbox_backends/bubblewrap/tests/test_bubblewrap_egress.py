"""Sandboxes with network access: who has power over their gate, and what happens when a part of it fails."""

from __future__ import annotations

import fcntl
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
from iii_sandbox_gate.namespace import UPLINK_DESCRIPTORS
from iii_sandbox_gate.needs import TUN, find_lack

from iii_core.errors import BootFailed, UnsupportedOperation
from iii_core.sandbox.port import Egress, Phase, RootImage, SandboxSpec
from iii_core.testing.sandbox_harness import SandboxesUnderTest, agent_of, cancelled_at, nothing_left, run, run_well

from .bwrapkit import Bench
from .test_bubblewrap_faults import keeper_pid, next_event, pids_of

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(find_lack(os.environ) is not None, reason=f"this user may not open {TUN}, or lacks programs"),
]
modes = pytest.mark.parametrize("mode", ["kernel", "fuse"])
NS_GET_USERNS = 0xB701  # ioctl_ns(2)
STEPS = 40


def spec(bench: Bench, sandbox_id: str = "one", image: RootImage | None = None) -> SandboxSpec:
    return replace(bench.spec(sandbox_id, image=image), egress=Egress())


def watched(bench: Bench) -> SandboxesUnderTest:
    return SandboxesUnderTest(open=bench.driver, image=bench.image, folder=bench.folder, capabilities=frozenset())


def with_program(bench: Bench, folder: Path, name: str, script: str) -> Bench:
    """Another program of that name first on PATH."""
    folder.mkdir()
    (folder / name).write_text(f"#!/bin/sh\n{script}\n", encoding="ascii")
    (folder / name).chmod(0o755)
    environ = {**bench.context.environ, "PATH": f"{folder}:{bench.context.environ['PATH']}"}
    return replace(bench, context=replace(bench.context, environ=environ))


def owner_of_network(pid: int | None) -> int:
    """The user namespace that has power over a process's network."""
    network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    owner = fcntl.ioctl(network, NS_GET_USERNS)
    try:
        return os.fstat(owner).st_ino
    finally:
        os.close(owner)
        os.close(network)


def user_namespace(pid: int | None) -> int:
    return Path(f"/proc/{pid}/ns/user").stat().st_ino


@modes
async def test_nobody_inside_has_power_over_the_gate(bench: Bench, mode: str) -> None:
    async with bench.sandbox(spec(bench, "box"), mode=mode) as (driver, agent):
        pid = (await driver.state("box")).pid
        assert owner_of_network(pid) != user_namespace(pid), (
            "who gains all rights in the sandbox would have some over it"
        )
        for command in (
            "ip link set tap0 down",
            "ip route add 10.0.0.0/8 via 192.0.2.2",
            "ip addr add 1.2.3.4 dev tap0",
        ):
            status, printed = await run(agent, ("/bin/sh", "-c", command))
            assert status.as_shell() != 0
            assert "not permitted" in printed
        assert "default via 192.0.2.2" in await run_well(agent, ("/bin/ip", "route"))


@modes
async def test_a_sandbox_takes_few_ports_of_this_machine(bench: Bench, mode: str) -> None:
    """Each socket of the uplink is one, and a sandbox may send from as many ports as it likes."""
    async with bench.sandbox(spec(bench), mode=mode):
        (uplink,) = pids_of("slirp4netns")
        most = str(UPLINK_DESCRIPTORS)
        limits = Path(f"/proc/{uplink}/limits").read_text(encoding="ascii")  # noqa: ASYNC240
        assert f"Max open files {most} {most} files" in " ".join(limits.split())


@modes
async def test_the_uplink_dies(bench: Bench, mode: str) -> None:
    """The sandbox runs on, its console says so, and there is no other way out."""
    async with nothing_left(watched(bench)):
        async with bench.sandbox(spec(bench), mode=mode) as (driver, agent):
            (uplink,) = pids_of("slirp4netns")
            os.kill(uplink, signal.SIGKILL)
            console = bench.folder / "one.console"
            with trio.fail_after(30):
                while "no network any more" not in console.read_text(encoding="utf-8"):  # noqa: ASYNC110
                    await trio.sleep(0.01)
            assert "tap0" not in await run_well(agent, ("/bin/ip", "link"))
            assert (await driver.state("one")).phase is Phase.RUNNING
            await driver.destroy("one", keep_writable=False)
        console.unlink()


@pytest.mark.parametrize("victim", ["agent", "bwrap", "keeper"])
async def test_the_gate_ends_with_its_sandbox(bench: Bench, victim: str) -> None:
    async with nothing_left(watched(bench)):
        async with bench.driver() as driver:
            await driver.create(spec(bench))
            await driver.start("one")
            assert len(pids_of("slirp4netns")) == 1
            launcher = (await driver.state("one")).pid
            assert launcher is not None
            victims = {"agent": pids_of("agent")[0], "bwrap": launcher, "keeper": keeper_pid()}
            os.kill(victims[victim], signal.SIGKILL)
            await next_event(driver)
            assert not pids_of("slirp4netns")
            await driver.start("one")  # with a gate of its own
            assert len(pids_of("slirp4netns")) == 1
            await driver.stop("one", grace=0)
            assert not pids_of("slirp4netns")
            await driver.destroy("one", keep_writable=False)
        (bench.folder / "one.console").unlink()


@pytest.mark.long
@pytest.mark.parametrize("step", range(1, STEPS + 1))
async def test_cancelled(bench: Bench, step: int) -> None:
    async with nothing_left(watched(bench)), bench.driver() as driver:
        await driver.create(spec(bench))
        await cancelled_at(step, partial(driver.start, "one"))
        if (await driver.state("one")).phase is not Phase.RUNNING:
            assert not pids_of("slirp4netns")
            await driver.start("one")
        async with agent_of(driver, "one") as agent:
            assert "default via" in await run_well(agent, ("/bin/ip", "route"))
        await driver.destroy("one", keep_writable=False)
        (bench.folder / "one.console").unlink()


@pytest.mark.parametrize(
    ("program", "script", "said"),
    [
        ("slirp4netns", "echo no tap today >&2; exit 1", "no tap today"),
        ("slirp4netns", "kill -9 $$", "uplink of its network did not come up"),
        pytest.param("slirp4netns", "exec sleep 60", "timed out", marks=pytest.mark.long),
        ("nft", "cat >/dev/null; echo no rules today >&2; exit 1", "nft: no rules today"),
        pytest.param("nft", "exec sleep 60", "nft timed out", marks=pytest.mark.long),
    ],
)
async def test_a_part_of_it_fails(bench: Bench, tmp_path: Path, program: str, script: str, said: str) -> None:
    """The sandbox does not start, and the error has the words that say why."""
    broken = with_program(bench, tmp_path / "bin", program, script)
    async with nothing_left(watched(bench)):
        async with broken.driver() as driver:
            await driver.create(spec(broken))
            with pytest.raises(BootFailed) as caught:
                await driver.start("one")
            assert said in caught.value.message
            assert caught.value.hint
            await driver.destroy("one", keep_writable=False)
        (bench.folder / "one.console").unlink()


@pytest.mark.parametrize(("lacking", "command"), [("slirp4netns", "apt install slirp4netns")])
async def test_what_is_missing_is_told(bench: Bench, tmp_path: Path, lacking: str, command: str) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("bwrap", "mount"):
        (tmp_path / "bin" / name).symlink_to(f"/usr/bin/{name}")
    poor = replace(bench, context=replace(bench.context, environ={"PATH": str(tmp_path / "bin")}))
    async with poor.driver() as driver:
        with pytest.raises(UnsupportedOperation, match=lacking) as caught:
            await driver.create(spec(poor))
        assert caught.value.hint == command


def resolv_conf(kind: str, root: Path) -> None:
    (root / "etc").mkdir()
    path = root / "etc/resolv.conf"
    match kind:
        case "link":
            path.symlink_to("../run/systemd/resolve/stub-resolv.conf")
        case "link-out":
            path.symlink_to("/proc/self/root/../../etc/hostname")
        case "file":
            path.write_text("nameserver 10.0.0.53\n", encoding="ascii")
        case "folder":
            path.mkdir()
        case _:
            (root / "etc").rmdir()
            if kind == "etc-is-a-link":
                (root / "etc").symlink_to("/tmp")


@pytest.mark.parametrize("kind", ["link", "link-out", "file", "nothing", "etc-is-a-link"])
async def test_resolv_conf(bench: Bench, make_image: Callable[..., RootImage], kind: str) -> None:
    """It names the gate's DNS, whatever the image has there, also at the second start."""
    image = make_image(partial(resolv_conf, kind))
    async with bench.driver() as driver:
        await driver.create(spec(bench, image=image))
        for _ in range(2):
            await driver.start("one")
            async with agent_of(driver, "one") as agent:
                assert await run_well(agent, ("/bin/cat", "/etc/resolv.conf")) == "nameserver 192.0.2.3\n"
                await driver.stop("one", grace=0)


async def test_resolv_conf_is_a_folder(bench: Bench, make_image: Callable[..., RootImage]) -> None:
    async with bench.driver() as driver:
        await driver.create(spec(bench, image=make_image(partial(resolv_conf, "folder"))))
        with pytest.raises(BootFailed, match=re.escape("/etc/resolv.conf is a folder in the image")):
            await driver.start("one")
