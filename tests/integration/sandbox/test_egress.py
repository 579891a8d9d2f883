"""What a sandbox reaches with ``network: egress`` and without, tried on real listeners (`iiitools.testnet`)."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
from iii_sandbox_gate.needs import TUN
from iii_sandbox_guest import fetch_kernel

from iiitools.testnet import (
    GATEWAY,
    MACHINE,
    MACHINE_PRIVATE,
    METADATA,
    OUTSIDE,
    PORT,
    PRIVATE,
    PRIVATE_OTHER,
    World,
    open_world,
)
from iiitools.worktree import ROOT

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a world of network namespaces"),
    pytest.mark.skipif(not os.access(TUN, os.R_OK | os.W_OK), reason=f"{TUN} may not be opened"),
]
RUNNER = Path(__file__).parent / "egressrunner.py"
HOME = ROOT / "build" / "guest"
"""As the tests of virtual machines have it: with the kernel that they fetched."""
TRIED = (OUTSIDE, PRIVATE, PRIVATE_OTHER, GATEWAY, MACHINE, MACHINE_PRIVATE, *METADATA, "127.0.0.1", "fd00:9::1")
OWN = ("192.0.2.2", "192.0.2.3")
"""The uplink's own addresses: to slirp's mind this machine's loopback, and its resolvers."""


@dataclass(frozen=True)
class Backend:
    name: str
    settings: Mapping[str, Any]
    memory: int | None = None


BACKENDS = {
    "bubblewrap": Backend("bubblewrap", {}),
    "bubblewrap-as-a-user": Backend("bubblewrap", {"unprivileged": True}),
}
MACHINES = {"libvirt": Backend("libvirt", {"accelerator": "tcg"}, memory=192)}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return BACKENDS[request.param]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with open_world(tmp_path_factory.mktemp("world")) as opened:
        yield opened


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Busybox, and an /etc/resolv.conf that leads nowhere."""
    folder = tmp_path_factory.mktemp("image")
    for name in ("bin", "etc"):
        (folder / "root" / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", folder / "root/bin/busybox")
    for name in ("sh", "cat", "nc", "nslookup", "ls", "timeout"):
        (folder / "root/bin" / name).symlink_to("busybox")
    (folder / "root/etc/resolv.conf").symlink_to("/run/nobody/resolv.conf")
    command = ["mksquashfs", folder / "root", folder / "image", "-all-root", "-quiet", "-no-progress"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / "image"


def connect(address: str, port: int = PORT) -> list[str]:
    """Says who answered, if anybody did."""
    return ["/bin/sh", "-c", f"nc -w 20 {address} {port} </dev/null"]


@pytest.fixture(scope="module")
def kernel() -> None:
    """Fetched at the first use."""
    HOME.mkdir(parents=True, exist_ok=True)
    with (HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        trio.run(fetch_kernel, HOME)


@dataclass(frozen=True)
class Sandboxes:
    """Runs commands in sandboxes of one backend on the machine of the world."""

    world: World
    backend: Backend
    image: Path
    folder: Path

    def ask(self, egress: Mapping[str, Any] | None, *commands: list[str]) -> Any:
        self.world.forget()
        wish = {
            "backend": self.backend.name,
            "settings": self.backend.settings,
            "image": str(self.image),
            "home": str(HOME),
            "memory": self.backend.memory,
            "egress": egress,
            "commands": commands,
        }
        done = subprocess.run(
            self.world.inside(sys.executable, RUNNER, self.folder),
            input=json.dumps(wish),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def reached(self, egress: Mapping[str, Any] | None, *addresses: str) -> set[str]:
        """Those of the addresses at which somebody answered at `PORT`, by the client's and by the servers' words."""
        results = self.ask(egress, *map(connect, addresses))
        assert isinstance(results, list), results
        answered = {address for address, (status, _) in zip(addresses, results, strict=True) if status == 0}
        noted = {line.split()[1] for where in ("machine", "outside") for line in self.world.reached(where)}
        assert noted - {"127.0.0.53"} == answered
        return answered


@pytest.fixture
def sandboxes(world: World, backend: Backend, image: Path, tmp_path: Path) -> Sandboxes:
    return Sandboxes(world, backend, image, tmp_path)


def test_the_machine_itself_reaches_all_of_it(world: World) -> None:
    """Else the tests below would prove nothing."""
    world.forget()
    for address in TRIED:
        command = world.inside("busybox", "nc", "-w", "5", address, str(PORT))
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=True)
        assert done.stdout.split()[1].decode() == address
    assert {line.split()[1] for where in ("machine", "outside") for line in world.reached(where)} == set(TRIED)


def test_egress_reaches_public_addresses_and_nothing_else(sandboxes: Sandboxes) -> None:
    assert sandboxes.reached({}, *TRIED, *OWN, "0.0.0.0", "::1") == {OUTSIDE, GATEWAY}


def test_no_network_reaches_nothing(sandboxes: Sandboxes) -> None:
    commands = [
        ["/bin/ls", "/sys/class/net"],
        *map(connect, (*TRIED, *OWN)),
        ["/bin/nslookup", "outside.test", OUTSIDE],
    ]
    results = sandboxes.ask(None, *commands)
    assert not [command for command, (status, _) in zip(commands[1:], results[1:], strict=True) if status == 0]
    assert sandboxes.world.reached("machine") == sandboxes.world.reached("outside") == []


def test_what_is_allowed_is_opened_and_no_more(sandboxes: Sandboxes) -> None:
    egress = {"allow": ["10.9.9.0/24", "10.1.0.0/16", f"{MACHINE}/32"]}
    tried = (OUTSIDE, PRIVATE, PRIVATE_OTHER, MACHINE, MACHINE_PRIVATE, GATEWAY, *METADATA)
    # the machine's own address is open where it is named, and not because it lies in a network that is
    assert sandboxes.reached(egress, *tried) == {OUTSIDE, PRIVATE, MACHINE, GATEWAY}


def test_names_are_looked_up_by_the_machines_resolvers(sandboxes: Sandboxes) -> None:
    names = ("outside.test", "private.test", "loop.test", "machine.test")
    looked_up = [["/bin/nslookup", name] for name in names]
    results = sandboxes.ask({}, ["/bin/cat", "/etc/resolv.conf"], *looked_up, *map(connect, names))
    assert results[0] == [0, "nameserver 192.0.2.3\n"]
    for address, (_, printed) in zip((OUTSIDE, PRIVATE, "127.0.0.1", MACHINE), results[1:5], strict=True):
        assert f"Address: {address}" in printed, printed
    assert [status == 0 for status, _ in results[5:]] == [True, False, False, False]  # whatever a name resolves to
    assert sandboxes.world.reached("outside") == [f"tcp {OUTSIDE} {PORT}"]
    assert set(sandboxes.world.reached("machine")) == {"udp 127.0.0.53 53"}


def test_datagrams_are_filtered_too(sandboxes: Sandboxes) -> None:
    asked = (OUTSIDE, PRIVATE, METADATA[0], MACHINE)
    results = sandboxes.ask({}, *(["/bin/nslookup", "outside.test", address] for address in asked))
    assert [status == 0 for status, _ in results] == [True, False, False, False]
    assert set(sandboxes.world.reached("outside")) == {f"udp {OUTSIDE} 53"}
    assert sandboxes.world.reached("machine") == []


def test_name_servers_of_ones_own(sandboxes: Sandboxes) -> None:
    """They are asked instead of the machine's, and reached for nothing else."""
    results = sandboxes.ask(
        {"nameservers": [PRIVATE, MACHINE_PRIVATE]},
        ["/bin/cat", "/etc/resolv.conf"],
        ["/bin/nslookup", "outside.test"],
        ["/bin/nslookup", "outside.test", MACHINE_PRIVATE],
        ["/bin/nslookup", "outside.test", PRIVATE_OTHER],
        connect(PRIVATE),
        connect(PRIVATE, 53),
        connect("192.0.2.3", 53),
    )
    assert results[0] == [0, f"nameserver {PRIVATE}\nnameserver {MACHINE_PRIVATE}\n"]
    assert [status == 0 for status, _ in results[1:]] == [True, True, False, False, True, False]
    assert set(sandboxes.world.reached("machine")) == {f"udp {MACHINE_PRIVATE} 53"}
    assert set(sandboxes.world.reached("outside")) == {f"udp {PRIVATE} 53", f"tcp {PRIVATE} 53"}


@pytest.mark.long
@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.usefixtures("kernel")
def test_machines_reach_public_addresses_and_nothing_else(world: World, image: Path, tmp_path: Path, name: str) -> None:
    sandboxes = Sandboxes(world, MACHINES[name], image, tmp_path)
    assert sandboxes.reached({}, *TRIED, *OWN) == {OUTSIDE, GATEWAY}


@pytest.mark.long
@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.usefixtures("kernel")
def test_what_is_allowed_is_opened_to_machines_too(world: World, image: Path, tmp_path: Path, name: str) -> None:
    """And their name servers, and datagrams."""
    sandboxes = Sandboxes(world, MACHINES[name], image, tmp_path)
    results = sandboxes.ask(
        {"allow": ["10.9.9.0/24", f"{MACHINE}/32"], "nameservers": [PRIVATE_OTHER]},
        ["/bin/cat", "/etc/resolv.conf"],
        ["/bin/nslookup", "private.test"],
        ["/bin/sh", "-c", f"timeout 8 nslookup private.test {METADATA[0]}"],
        *(
            connect(address)
            for address in (PRIVATE, PRIVATE_OTHER, MACHINE, MACHINE_PRIVATE, "private.test", "loop.test")
        ),
    )
    assert results[0] == [0, f"nameserver {PRIVATE_OTHER}\n"]
    assert [status == 0 for status, _ in results[1:]] == [True, False, True, False, True, False, True, False]
    assert set(world.reached("machine")) == {f"tcp {MACHINE} {PORT}"}
    assert {f"udp {PRIVATE_OTHER} 53", f"tcp {PRIVATE} {PORT}"} <= set(world.reached("outside"))
    assert not [line for line in world.reached("outside") if METADATA[0] in line]


@pytest.mark.long
@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.usefixtures("kernel")
def test_a_machine_without_a_network_reaches_nothing(world: World, image: Path, tmp_path: Path, name: str) -> None:
    sandboxes = Sandboxes(world, MACHINES[name], image, tmp_path)
    results = sandboxes.ask(None, ["/bin/ls", "/sys/class/net"], *map(connect, TRIED))
    assert results[0] == [0, "lo\n"]
    assert not [status for status, _ in results[1:] if status == 0]
    assert world.reached("machine") == world.reached("outside") == []


@pytest.mark.parametrize(
    ("egress", "code", "told"),
    [
        ({"allow": ["fd00:9::/64"]}, "W236", "no IPv6"),
        ({"nameservers": ["2001:db8::1"]}, "W236", "no IPv6"),
        ({"nameservers": ["127.0.0.53"]}, "W239", "127.0.0.53"),
        ({"allow": ["192.0.2.0/28"]}, "W239", "192.0.2.0/24"),
        ({"allow": ["10.0.0.0/33"]}, "W239", "10.0.0.0/33"),
    ],
)
def test_what_cannot_be_had_is_an_error(sandboxes: Sandboxes, egress: dict[str, Any], code: str, told: str) -> None:
    refused = sandboxes.ask(egress)
    assert refused["error"] == code
    assert told in refused["message"]
    assert refused["hint"]
