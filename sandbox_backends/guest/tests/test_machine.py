"""The agent as the init of a real virtual machine: one boot for all of these."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from iii_sandbox_guest import Needs

from iii_core.sandbox.agent import Agent, ExitStatus, ProcessSpec, TerminalSize
from iii_core.sandbox.agent_wire import Feature
from iii_core.sandbox.archive import Unpacker, pack

from .agentkit import outcome
from .agentkit import run as run_program
from .machinekit import Machine

pytestmark = pytest.mark.timeout(300)  # the first test boots, emulated
PORT = 49134
PIDS = 40


@dataclass
class Booted:
    """The machine under test, with the agent of the connection in force, and that connection."""

    machine: Machine
    agent: Agent
    stream: trio.SocketStream

    async def sh(self, script: str, **changes: object) -> str:
        out, err, status = await run_program(self.agent, "/bin/sh", "-c", script, env={"PATH": "/bin"}, **changes)
        return out.decode() + err.decode() + ("" if status.as_shell() == 0 else f"[{status.as_shell()}]")


async def answer(tunnel: trio.abc.Stream) -> None:
    await tunnel.send_all(b"engine here: " + await tunnel.receive_some(100))


@pytest.fixture(scope="module")
async def booted(root_image: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Booted]:
    folder = tmp_path_factory.mktemp("machine")
    machine = Machine(folder, root_image, needs=Needs(data_disk=False, pids=PIDS))
    async with machine.running():
        stream = await machine.connect()
        async with machine.agent(stream, tunnel_ports=[PORT], serve_tunnel=answer) as agent:
            yield Booted(machine, agent, stream)


async def test_the_console_holds_what_was_said_from_the_first_byte(booted: Booted) -> None:
    assert "Linux version" in booted.machine.console.splitlines()[0]


async def test_programs_run_and_their_ends_are_told(booted: Booted) -> None:
    assert await booted.sh("echo out; echo err >&2; exit 7") == "out\nerr\n[7]"
    assert await booted.sh("kill -9 $$") == "[137]"
    assert (await booted.sh("pwd", cwd=None)).strip() == "/workspace"


async def test_a_terminal_has_a_size_and_echoes(booted: Booted) -> None:
    process = await booted.agent.spawn(
        ProcessSpec(argv=["sh"], env={"PATH": "/bin", "PS1": "> "}, tty=TerminalSize(rows=31, cols=97))
    )
    await process.send_stdin(b"stty size; echo $((6*7)); exit 5\n")
    seen = b""
    while (output := await process.receive_output()) is not None:
        seen += output[1]
    assert b"31 97" in seen
    assert b"42" in seen
    assert (await process.wait()).code == 5


async def test_connections_from_inside_reach_the_engine_with_no_network_device(booted: Booted) -> None:
    assert await booted.sh(f"echo hello | nc 127.0.0.1 {PORT}") == "engine here: hello\n"
    assert await booted.sh("ls /sys/class/net") == "lo\n"


async def test_the_root_has_what_every_sandbox_has(booted: Booted) -> None:
    assert await booted.sh("cat /etc/hosts") == "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
    assert await booted.sh("hostname") == "machine\n"
    assert await booted.sh("test -f /etc/resolv.conf && test -d /workspace") == ""
    assert await booted.sh("stat -c %a /tmp /run /dev/shm /dev/null") == "1777\n755\n1777\n666\n"
    assert (
        await booted.sh("ls /dev")
        == "\n".join(
            [
                "fd",
                "full",
                "null",
                "ptmx",
                "pts",
                "random",
                "shm",
                "stderr",
                "stdin",
                "stdout",
                "tty",
                "urandom",
                "zero",
            ]
        )
        + "\n"
    )
    mounts = await booted.sh("cat /proc/mounts")
    assert "/image" not in mounts.replace("lowerdir=/image", "")
    assert "overlay / overlay rw,nodev" in mounts


async def test_the_clock_is_the_host_s(booted: Booted) -> None:
    before = time.time()
    inside = float(await booted.sh("date +%s"))
    assert before - 1 <= inside + 1
    assert inside <= time.time() + 1


async def test_a_machine_that_stood_still_is_set_right(booted: Booted) -> None:
    assert booted.agent.ready.features & Feature.RESUME
    stream = await booted.agent.spawn(ProcessSpec(argv=["/bin/cat"], env={}, stdin=True))
    await booted.agent.resume()
    before = time.time()
    assert before - 2 < float(await booted.sh("date +%s")) < time.time() + 2
    await stream.kill()


async def test_files_go_in_and_out_with_the_rights_of_who_asks(booted: Booted, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 1000)

    async def copy_in(path: str, **changes: int) -> tuple[bytes, bytes, ExitStatus]:
        process = await booted.agent.copy_in(path, **changes)
        for piece in pack(tmp_path / "file"):
            await process.send_stdin(piece)
        await process.close_stdin()
        return await outcome(process)

    assert await copy_in("/workspace/copied") == (b"", b"", ExitStatus(0))
    assert await booted.sh("wc -c </workspace/copied") == "256000\n"
    out, _, status = await outcome(await booted.agent.copy_out("copied", uid=1000, gid=1000))
    assert status.code == 0
    unpacker = Unpacker(tmp_path / "back")
    unpacker.feed(out)
    unpacker.finish()
    unpacker.close()
    assert await trio.Path(tmp_path / "back").read_bytes() == bytes(range(256)) * 1000
    assert await copy_in("/workspace/mine", uid=1000, gid=1000) == (b"", b"file: Permission denied\n", ExitStatus(1))


async def test_it_says_what_it_uses(booted: Booted) -> None:
    before = await booted.agent.stats()
    await booted.sh("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; dd if=/dev/zero of=/workspace/8M bs=1M count=8")
    after = await booted.agent.stats()
    assert after.cpu_ns > before.cpu_ns
    assert after.processes == before.processes == 0
    assert before.disk_used is not None
    assert after.disk_used is not None
    assert after.disk_size is not None
    assert 8 << 20 <= after.disk_used - before.disk_used < 9 << 20
    assert after.disk_used < after.disk_size
    await booted.sh("rm /workspace/8M")


async def test_a_port_inside_can_be_reached_from_outside(booted: Booted) -> None:
    server = await booted.agent.spawn(
        ProcessSpec(argv=["/bin/sh", "-c", "echo go; echo served | nc -l -p 8080"], env={"PATH": "/bin"})
    )
    assert await server.receive_output() == (1, b"go\n")
    with trio.fail_after(40):
        while True:
            try:
                connection = await booted.agent.dial(8080)
                break
            except ConnectionRefusedError:  # it takes a moment to listen
                await trio.sleep(0.05)
        async with connection:
            assert await connection.receive_some() == b"served\n"
    await server.kill()


async def test_root_inside_reaches_neither_the_agent_nor_link_nor_disks(booted: Booted) -> None:
    assert (await booted.sh("id -u")).strip() == "0"
    for script in (
        "mknod /tmp/disk b 254 0",
        "mknod /workspace/port c 250 1",
        "cat /proc/1/environ",
        "cat /proc/1/maps",
        "cat /proc/1/mem",
        "for fd in /proc/1/fd/*; do cat <$fd && echo reached; done; false",
        "mount -t devtmpfs devtmpfs /workspace",
        "mount -t tmpfs tmpfs /workspace",
        "echo 1 >/proc/sys/kernel/core_pattern",
        "echo b >/proc/sysrq-trigger; cat /proc/sysrq-trigger | grep .",
        "echo /bin/sh >/sys/kernel/uevent_helper",
    ):
        said = await booted.sh(script)
        assert said.endswith("]"), (script, said)
        assert "reached" not in said
    assert (await booted.sh("kill -9 1; kill -STOP 1; echo alive")).strip().endswith("alive")


async def test_root_inside_has_a_container_s_capabilities_and_other_users_none(booted: Booted) -> None:
    script = "grep -E 'Cap(Prm|Eff|Bnd)|NoNewPrivs' /proc/self/status"
    assert await booted.sh(script) == "".join(
        f"{name}:\t{value}\n"
        for name, value in [*((name, "00000000800405fb") for name in ("CapPrm", "CapEff", "CapBnd")), ("NoNewPrivs", 1)]
    )
    unprivileged = await booted.sh(script, uid=1000, gid=1000)
    assert "CapPrm:\t0000000000000000" in unprivileged
    assert "CapEff:\t0000000000000000" in unprivileged
    assert await booted.sh("touch /workspace/x", uid=1000, gid=1000) != ""


async def test_processes_are_limited_and_the_agent_is_not(booted: Booted) -> None:
    script = f"for i in $(seq {2 * PIDS}); do sleep 60 & done; echo all"
    assert "can't fork" in await booted.sh(script)
    await booted.sh("kill -9 -1")  # a builtin of a shell that the agent starts all the same
    with trio.fail_after(40):
        while (said := await booted.sh("echo $(echo fine)")) != "fine\n":  # what was killed ends a moment later
            assert "can't fork" in said


async def test_an_idle_machine_leaves_the_agent_asleep(booted: Booted) -> None:
    ticks = "set -- $(cat /proc/1/stat); echo $((${14} + ${15}))"
    spent: list[int] = []
    for _ in range(5):  # a busy machine makes the questions themselves expensive, now and then
        before = int(await booted.sh(ticks))
        await trio.sleep(1)
        spent.append(int(await booted.sh(ticks)) - before)
        if spent[-1] <= 10:  # of 100 in a second, the two questions included
            return
    raise AssertionError(f"it is awake: {spent}")


async def test_another_host_takes_over_in_the_middle_of_a_frame(booted: Booted) -> None:
    """Last: it ends the connection that the others use."""
    sleeper = await booted.agent.spawn(ProcessSpec(argv=["/bin/sleep", "1000"], env={"NAME": "old"}))
    flood = await booted.agent.spawn(ProcessSpec(argv=["/bin/cat", "/dev/zero"], env={}))
    assert await flood.receive_output() is not None
    booted.stream.socket.shutdown(socket.SHUT_RDWR)  # as when a host dies
    stream = await booted.machine.connect()
    async with booted.machine.agent(stream, resync=True) as agent:
        again = Booted(booted.machine, agent, stream)
        with trio.fail_after(40):
            while re.search("sleep 1000|/dev/zero", await again.sh("ps")):  # what is killed ends a moment later
                pass
        assert sleeper.pid > 1
        with trio.fail_after(40):
            await agent.power_off(1)
            assert booted.machine.process is not None
            await booted.machine.process.wait()
    assert "Power down" in booted.machine.console
