"""The gate of a virtual machine, with a test in QEMU's place: frames in, frames out, hostile ones, and ends."""

from __future__ import annotations

import os
import signal
import socket
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
import trio
from iii_sandbox_gate.addresses import MACHINE, MACHINE_GATEWAY
from iii_sandbox_gate.machinegate import END_TIMEOUT, MachineGate, start_machine_gate
from iii_sandbox_gate.namespace import UPLINK_DESCRIPTORS
from iii_sandbox_gate.needs import TUN, find_lack
from iii_sandbox_gate.plan import GatePlan, plan_gate
from iii_sandbox_gate.pump import MAX_FRAME, Pump, StreamBroken
from iii_sandbox_gate.service import HARDWARE

from iii_core.sandbox.host_processes import ProcessRecords
from iii_core.sandbox.launcher import LaunchFailed
from iii_core.sandbox.port import Egress
from iii_core.testing.sandbox_harness import cancelled_at, descendants

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        os.geteuid() != 0 or find_lack(os.environ) is not None, reason=f"needs {TUN}, slirp4netns and nft, as root"
    ),
]
MAC = bytes.fromhex("525400696969")
STEPS = 30


@pytest.fixture
def plan() -> GatePlan:
    return plan_gate(Egress(), os.environ, machine=True)


@dataclass
class Qemu:
    """The other end of a gate's stream."""

    gate: MachineGate
    stream: trio.SocketStream
    console: Path
    received: bytearray = field(default_factory=bytearray)

    async def send(self, frame: bytes) -> None:
        await self.stream.send_all(struct.pack("!I", len(frame)) + frame)

    async def receive(self, kind: int, seconds: float = 20) -> bytes | None:
        """The next frame of that type; None if there is none for so long."""
        with trio.move_on_after(seconds):
            while True:
                (size,) = struct.unpack("!I", await self._have(4))
                frame = (await self._have(4 + size))[4:]
                del self.received[: 4 + size]
                if struct.unpack_from("!H", frame, 12)[0] == kind:
                    return frame
        return None

    async def _have(self, size: int) -> bytes:
        """The first bytes of what came and was not taken; who is cancelled loses nothing."""
        while len(self.received) < size:
            piece = await self.stream.receive_some(65536)
            assert piece, "the stream has ended"
            self.received += piece
        return bytes(self.received[:size])

    async def ended(self) -> None:
        """Wait until the gate has closed the stream."""
        with suppress(trio.BrokenResourceError):
            while await self.stream.receive_some():
                pass

    async def ask_for_gateway(self) -> bytes:
        """The gateway's hardware address, by ARP (RFC 826); asked again, as everybody does: full queues drop frames."""
        addresses = MAC + socket.inet_aton(MACHINE) + bytes(6) + socket.inet_aton(MACHINE_GATEWAY)
        answer = None
        with trio.fail_after(20):
            while answer is None:
                await self.send(b"\xff" * 6 + MAC + struct.pack("!HHHBBH", 0x0806, 1, 0x0800, 6, 4, 1) + addresses)
                answer = await self.receive(0x0806, 2)
        assert answer[28:32] == socket.inet_aton(MACHINE_GATEWAY)
        return answer[22:28]

    async def said(self, words: str) -> None:
        """Wait for words on the console."""
        with trio.fail_after(30):
            while words not in self.console.read_text(encoding="utf-8"):  # noqa: ASYNC110
                await trio.sleep(0.01)


@asynccontextmanager
async def running(plan: GatePlan, folder: Path) -> AsyncGenerator[Qemu]:
    """A gate with its stream; nothing of it is left afterwards."""
    before = processes()
    console = folder / "console"
    ours, theirs = socket.socketpair()
    with console.open("wb") as said:
        async with trio.open_nursery() as nursery:
            records = ProcessRecords(folder / "processes")
            gate = await start_machine_gate(
                plan, nursery=nursery, console=said.fileno(), records=records, user=(40001, 40002)
            )
            try:
                gate.connect(theirs)
                ours.setblocking(False)
                async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream:
                    yield Qemu(gate, stream, console)
            finally:
                with trio.move_on_after(END_TIMEOUT, shield=True):
                    await gate.end()
    assert processes() == before
    assert not list((folder / "processes").iterdir())


def status_of(pid: int) -> dict[str, list[str]]:
    """``/proc/PID/status`` (proc_pid_status(5))."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}


def processes() -> list[str]:
    return [line for line in descendants(os.getpid()) if line.split(" ", 1)[1].startswith(("python", "slirp"))]


def packet(source: str, target: str, *, protocol: int = 17, payload: bytes = b"x" * 16) -> bytes:
    """An IPv4 packet (RFC 791), of UDP if not said otherwise, to port 9."""
    body = struct.pack("!4H", 1234, 9, 8 + len(payload), 0) + payload
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 1, 0, 64, protocol, 0, *map(socket.inet_aton, (source, target))
    )
    total = sum(struct.unpack("!10H", head))
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return head[:10] + struct.pack("!H", checksum) + head[12:] + body


async def test_what_is_closed_is_refused_in_words(plan: GatePlan, tmp_path: Path) -> None:
    """With an ICMP message (type 3, code 13, RFC 1812), for each packet: programs must not wait for time-outs."""
    async with running(plan, tmp_path) as qemu:
        gateway = await qemu.ask_for_gateway()
        for target in ("10.0.0.1", "169.254.169.254", "192.0.2.2", "192.0.2.3", "192.168.1.1", "198.18.0.1") * 3:
            await qemu.send(gateway + MAC + b"\x08\x00" + packet(MACHINE, target))
            answer = await qemu.receive(0x0800)
            assert answer is not None, target
            assert tuple(answer[34:36]) == (3, 13), target


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("192.0.2.100", "10.0.0.1"),  # the gate's own
        ("10.0.0.1", "8.8.8.8"),
        (MACHINE, MACHINE_GATEWAY),
        (MACHINE, "127.0.0.1"),
        ("127.0.0.1", "8.8.8.8"),
        (MACHINE, "224.0.0.1"),
        (MACHINE, "255.255.255.255"),
    ],
)
async def test_what_is_not_even_answered(plan: GatePlan, tmp_path: Path, source: str, target: str) -> None:
    async with running(plan, tmp_path) as qemu:
        gateway = await qemu.ask_for_gateway()
        await qemu.send(gateway + MAC + b"\x08\x00" + packet(source, target))
        assert await qemu.receive(0x0800, seconds=0.3) is None
        assert await qemu.ask_for_gateway() == gateway


async def test_its_process_has_no_rights_when_the_first_frame_comes(plan: GatePlan, tmp_path: Path) -> None:
    async with running(plan, tmp_path) as qemu:
        assert await qemu.ask_for_gateway() == HARDWARE
        status = status_of(qemu.gate.pid)
        assert status["Uid"] == ["40001"] * 4
        assert status["Gid"] == ["40002"] * 4
        assert status["Groups"] == []
        assert {int(status[name][0], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == {0}
        assert status["NoNewPrivs"] == ["1"]


async def test_its_uplink_takes_few_ports_of_this_machine(plan: GatePlan, tmp_path: Path) -> None:
    async with running(plan, tmp_path) as qemu:
        (uplink,) = [int(line.split()[0]) for line in descendants(qemu.gate.pid)]
        most = str(UPLINK_DESCRIPTORS)
        limits = Path(f"/proc/{uplink}/limits").read_text(encoding="ascii")  # noqa: ASYNC240
        assert f"Max open files {most} {most} files" in " ".join(limits.split())


@pytest.mark.parametrize("size", [0, MAX_FRAME + 1, 0xFFFFFFFF])
async def test_a_stream_that_is_not_qemus_is_closed(plan: GatePlan, tmp_path: Path, size: int) -> None:
    async with running(plan, tmp_path) as qemu:
        await qemu.stream.send_all(struct.pack("!I", size) + b"x" * 100)
        await qemu.said(f"a frame of {size} bytes")
        with trio.fail_after(30):
            await qemu.ended()


async def test_odd_frames_are_dropped(plan: GatePlan, tmp_path: Path) -> None:
    async with running(plan, tmp_path) as qemu:
        for size in (1, 13, 14, 1514, 9000, MAX_FRAME):
            await qemu.send(os.urandom(size))
        frame = bytes(60)
        for byte in struct.pack("!I", len(frame)) + frame:  # in pieces of one byte
            await qemu.stream.send_all(bytes([byte]))
        await qemu.ask_for_gateway()


async def test_a_guest_that_does_not_read_stops_nobody(plan: GatePlan, tmp_path: Path) -> None:
    async with running(plan, tmp_path) as qemu:
        gateway = await qemu.ask_for_gateway()
        refused = gateway + MAC + b"\x08\x00" + packet(MACHINE, "10.0.0.1", payload=b"x" * 1000)
        with trio.fail_after(20):
            for _ in range(3000):  # each is answered, and nobody takes the answers
                await qemu.send(refused)
        await qemu.ask_for_gateway()


@pytest.mark.parametrize("victim", ["uplink", "gate"])
async def test_a_part_of_it_is_killed(plan: GatePlan, tmp_path: Path, victim: str) -> None:
    async with running(plan, tmp_path) as qemu:
        (uplink,) = [int(line.split()[0]) for line in descendants(qemu.gate.pid)]
        watched = os.pidfd_open(uplink)
        os.kill(uplink if victim == "uplink" else qemu.gate.pid, signal.SIGKILL)
        with trio.fail_after(30):
            await trio.lowlevel.wait_readable(watched)
        os.close(watched)
        if victim == "uplink":
            await qemu.said("no network any more: slirp4netns has ended")
            await qemu.ask_for_gateway()
        else:
            await qemu.said("no network any more: the process that is its gate has ended")


async def test_nothing_is_said_of_an_end_that_was_asked_for(plan: GatePlan, tmp_path: Path) -> None:
    async with running(plan, tmp_path) as qemu:
        await qemu.ask_for_gateway()
    assert "no network any more" not in qemu.console.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("uplink", "said"),
    [
        (("/bin/sh", "-c", "echo no tap today >&2; exit 1"), "uplink of its network did not come up"),
        (("/nonexistent/slirp4netns",), "uplink of its network did not come up"),
    ],
)
async def test_it_cannot_be_made(plan: GatePlan, tmp_path: Path, uplink: tuple[str, ...], said: str) -> None:
    before = processes()
    async with trio.open_nursery() as nursery:
        for broken, words in (
            (replace(plan, uplink=uplink), said),
            (replace(plan, rules="table nonsense {"), "rules of the sandbox's network are refused: nft: "),
            (replace(plan, nft="/nonexistent/nft"), "/nonexistent/nft"),
        ):
            with pytest.raises(LaunchFailed, match=words):
                await start_machine_gate(broken, nursery=nursery, console=2)
    assert processes() == before


@pytest.mark.long
@pytest.mark.parametrize("step", range(1, STEPS + 1))
async def test_cancelled(plan: GatePlan, step: int) -> None:
    before = processes()
    async with trio.open_nursery() as nursery:
        gates: list[MachineGate] = []

        async def start() -> None:
            gates.append(await start_machine_gate(plan, nursery=nursery, console=2))

        await cancelled_at(step, partial(start))
        for gate in gates:
            await gate.end()
    with trio.move_on_after(20):
        while processes() != before:  # noqa: ASYNC110 - the uplink of a gate that was killed has no parent any more
            await trio.sleep(0.02)
    assert processes() == before


def test_the_pump_keeps_what_qemu_does_not_take() -> None:
    """And nothing of it is lost or cut."""
    card, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with card, kernel, ours, theirs:
        card.setblocking(False)
        pump = Pump(card.fileno(), ours)
        frames = [bytes([number]) * 1400 for number in range(20)]
        sent = 0
        received = b""
        while len(received) < 20 * 1404:
            while sent < 20 and not pump.is_full:
                kernel.send(frames[sent])
                sent += 1
                pump.from_card()
            received += theirs.recv(1000)
            pump.flush()
        assert received == b"".join(struct.pack("!I", 1400) + frame for frame in frames)
        theirs.close()
        with pytest.raises(StreamBroken):
            pump.from_stream()
