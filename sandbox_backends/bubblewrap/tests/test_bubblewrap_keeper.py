"""The keeper and the driver's side of it: requests, events, descriptors, and what happens when one of them is gone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from iii_sandbox_bubblewrap.boots import BootTable, BubblewrapBoot, pid_behind
from iii_sandbox_bubblewrap.keeper import wire
from iii_sandbox_bubblewrap.keeper.identity import IdMap, contiguous
from iii_sandbox_bubblewrap.keeper.removal import remove_tree
from iii_sandbox_bubblewrap.keeper_client import KeeperClient, open_keeper, subordinate_ids
from iii_sandbox_bubblewrap.policy import Settings

from iii_core.errors import SandboxError
from iii_core.records import OpenContext
from iii_core.sandbox.host_processes import ProcessId, ProcessRecords

FACTS = {"privileged": True, "ranged": True, "root": [7, 7]}


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_wire_carries_descriptors() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        reads, writes = os.pipe()
        ours.sendmsg(*wire.encode({"id": 1, "what": "ä"}, [writes]))
        ours.sendmsg(*wire.encode({"id": 2}, []))
        os.close(writes)
        message, (received,) = wire.decode(*theirs.recvmsg(wire.MAX_MESSAGE, wire.ANCILLARY_SIZE)[:2])
        assert message == {"id": 1, "what": "ä"}
        os.write(received, b"through")
        assert os.read(reads, 10) == b"through"
        assert wire.decode(*theirs.recvmsg(wire.MAX_MESSAGE, wire.ANCILLARY_SIZE)[:2]) == ({"id": 2}, [])
        os.close(received)
        os.close(reads)


@asynccontextmanager
async def client_and_peer(events: BootTable | None = None) -> AsyncGenerator[tuple[KeeperClient, socket.socket]]:
    """A client, and the keeper's end of its socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.settimeout(10)
    with ours, theirs:
        async with trio.open_nursery() as nursery:
            client = KeeperClient(ours, FACTS, (events or BootTable()).event)
            nursery.start_soon(client.run)
            yield client, theirs
            nursery.cancel_scope.cancel()


async def taken(peer: socket.socket) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(await trio.to_thread.run_sync(peer.recv, wire.MAX_MESSAGE))
    return message


async def test_answers_find_their_requests() -> None:
    answers: dict[str, Any] = {}

    async def ask(client: KeeperClient, op: str) -> None:
        answers[op] = await client.request(op)

    async with client_and_peer() as (client, peer), trio.open_nursery() as nursery:
        for op in ("one", "two", "three"):
            nursery.start_soon(ask, client, op)
        requests = [await taken(peer) for _ in range(3)]
        for request in reversed(requests):
            peer.send(json.dumps({"id": request["id"], "for": request["op"]}).encode())
    assert {op: answer["for"] for op, answer in answers.items()} == {"one": "one", "two": "two", "three": "three"}


async def test_a_refusal_has_a_remedy() -> None:
    async with client_and_peer() as (client, peer), trio.open_nursery() as nursery:

        async def refuse() -> None:
            peer.send(json.dumps({"id": (await taken(peer))["id"], "error": "squashfuse is not installed"}).encode())

        nursery.start_soon(refuse)
        with pytest.raises(SandboxError, match="the namespace keeper cannot boot: squashfuse is not") as caught:
            await client.request("boot")
        assert caught.value.hint == "as root: apt install squashfuse"


async def test_whoever_waits_hears_that_the_keeper_is_gone() -> None:
    async with client_and_peer() as (client, peer), trio.open_nursery() as nursery:

        async def end() -> None:
            await taken(peer)
            peer.close()

        nursery.start_soon(end)
        with pytest.raises(SandboxError, match="is gone"):
            await client.request("kill", boot=1)
        assert client.gone
        with pytest.raises(SandboxError, match="is gone"):
            await client.request("kill", boot=1)


async def test_a_request_is_ended_even_if_cancelled() -> None:
    async with client_and_peer() as (client, peer), trio.open_nursery() as nursery:
        done = trio.Event()

        async def ask() -> None:
            await client.request("boot")
            done.set()

        async with trio.open_nursery() as asking:
            asking.start_soon(ask)
            request = await taken(peer)
            asking.cancel_scope.cancel()
            nursery.start_soon(lambda: trio.to_thread.run_sync(peer.send, json.dumps({"id": request["id"]}).encode()))
        assert done.is_set()


async def test_descriptors_nobody_wants_are_closed() -> None:
    async with client_and_peer() as (client, peer):
        before = open_descriptors()
        for message in ({"boot": 99, "role": "launcher"}, {"boot": 99, "exit": "exit 0"}, {"id": 99}):
            peer.sendmsg(*wire.encode(message, [0]))
        peer.close()
        await client.wait_gone()
        assert open_descriptors() == before - 1


async def test_events_of_a_boot() -> None:
    table = BootTable()
    async with client_and_peer(table) as (client, _):
        before = open_descriptors()
        tidied: list[str] = []
        ours, theirs = socket.socketpair()
        launcher = 1  # any process but this one
        boot = BubblewrapBoot(1, ours, client, tidy=lambda: tidied.append("one"))
        table.add(boot)
        table.event({"boot": 1, "role": "launcher"}, [os.pidfd_open(launcher)])
        table.event({"boot": 1, "role": "agent"}, [os.pidfd_open(os.getpid())])
        with trio.fail_after(20):
            assert await boot.wait_running()
        assert not tidied
        table.event({"boot": 1, "exit": "exit 3"}, [])
        assert (boot.pid, boot.agent, boot.exit, tidied) == (launcher, os.getpid(), "exit 3", ["one"])
        assert not await boot.wait_running()
        await boot.kill()
        table.event({"boot": 1, "exit": "exit 4"}, [])
        assert boot.exit == "exit 3"
        forgotten = BubblewrapBoot(2, theirs, client, tidy=int)
        table.add(forgotten)
        table.forget(forgotten)
        assert forgotten.exit == "never started"
        await table.wait_none()
        ours.close()
        theirs.close()
        assert open_descriptors() == before


def test_a_process_that_has_ended_has_no_number() -> None:
    with subprocess.Popen(["true"]) as process:
        pidfd = os.pidfd_open(process.pid)
        assert pid_behind(pidfd) == process.pid
    assert pid_behind(pidfd) is None
    os.close(pidfd)


@pytest.mark.integration
async def test_the_real_one(context: OpenContext) -> None:
    """It refuses what it doesn't know, is recorded while it lives, and ends with the block."""
    async with open_keeper(Settings(), context, BootTable().event) as keeper:
        (record,) = (context.runtime_dir / "processes").iterdir()
        process = ProcessId(*map(int, record.name.split(".")[:2]))
        assert process.alive()
        for op, fields in (("dance", {}), ("boot", {"image": "/nonexistent"})):
            with pytest.raises(SandboxError, match=f"the namespace keeper cannot {op}"):
                await keeper.request(op, (0, 0, 0), **fields)
        await keeper.request("kill", boot=99)
        await keeper.request("release", image="/nonexistent")
        await keeper.request("remove", path="/nonexistent")
    assert not process.alive()
    assert not list((context.runtime_dir / "processes").iterdir())


@pytest.mark.integration
async def test_a_record_that_stays_is_swept(context: OpenContext) -> None:
    """As after SIGKILL of the sandbox host, were there no parent-death signal."""
    records = ProcessRecords(context.runtime_dir / "processes")
    async with open_keeper(Settings(), context, BootTable().event) as keeper:
        (swept,) = records.sweep()
        with trio.fail_after(20):
            await keeper.wait_gone()
        assert not swept.alive()
    assert records.sweep() == []


def test_subordinate_ids(tmp_path: Path) -> None:
    table = tmp_path / "subuid"
    assert subordinate_ids(table, 0) is None
    table.write_text("# x\nroot\nroot:a:5\nroot:5:0\nother:1:2\nroot:100000:65536\n0:7:8\n", encoding="ascii")
    assert subordinate_ids(table, 0) == (100000, 65536)
    assert subordinate_ids(table, 4_000_000) is None
    table.write_text("4000000:7:8\n", encoding="ascii")
    assert subordinate_ids(table, 4_000_000) == (7, 8)


def test_id_maps() -> None:
    assert contiguous(70_000, 65536).ranged
    assert contiguous(70_000, 65536).root == (70_000, 70_000)
    rows = ((0, 1000, 1),)
    assert not IdMap(uids=rows, gids=rows).ranged


def test_remove_tree(tmp_path: Path) -> None:
    """Deep, wide, with links to outside, odd kinds and names; what the links point at stays."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/kept").touch()
    top = tmp_path / "top"
    deepest = os.open(tmp_path, os.O_RDONLY)
    os.mkdir("top", dir_fd=deepest)
    folder = os.open("top", os.O_RDONLY, dir_fd=deepest)
    for _ in range(1500):
        os.mkdir("d", dir_fd=folder)
        below = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(folder)
    os.close(deepest)
    for number in range(50):
        (top / f".iii-removal-{os.getpid()}-{number}").mkdir()
        (top / f"w{number}" / "x").mkdir(parents=True)
    (top / "link").symlink_to(tmp_path / "outside")
    (top / "w1/link").symlink_to("../../outside")
    os.mkfifo(top / "fifo")
    if os.geteuid() == 0:  # as whom the keeper always deletes
        (top / "w2").chmod(0)
    os.link(tmp_path / "outside/kept", top / "hard")
    remove_tree(str(top))
    assert not top.exists()
    assert (tmp_path / "outside/kept").exists()
    remove_tree(str(top))


def test_remove_tree_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(OSError, match="Not a directory"):
        remove_tree(str(tmp_path / "link"))
    assert (tmp_path / "real").exists()
