"""A worker without a network, and with egress, under a real engine on a machine of a world of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from iii_sandbox_gate.needs import TUN

from iiitools.testnet import MACHINE, MACHINE_PRIVATE, METADATA, OUTSIDE, PORT, PRIVATE, World, open_world

if TYPE_CHECKING:
    from conftest import IIIProject
    from iiitools.registry import Registry

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a world of network namespaces"),
    pytest.mark.skipif(not os.access(TUN, os.R_OK | os.W_OK), reason=f"{TUN} may not be opened"),
]
NAME = "math-worker"
TRIED = (OUTSIDE, PRIVATE, MACHINE, MACHINE_PRIVATE, *METADATA)
TRY = """
import concurrent.futures, socket, sys
def reached(address):
    try:
        with socket.create_connection((address, int(sys.argv[1])), timeout=20) as connection:
            return address if connection.recv(100) else None  # and then the server has made a note of it
    except OSError:
        return None
with concurrent.futures.ThreadPoolExecutor(20) as pool:
    print(*filter(None, pool.map(reached, sys.argv[2:])))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with open_world(tmp_path_factory.mktemp("world")) as opened:
        yield opened


def reached(project: IIIProject, *addresses: str) -> list[str]:
    """Where the worker's sandbox gets to, of these."""
    command = ("worker", "exec", NAME, "--", "python3", "-c", TRY, str(PORT), *addresses)
    return project.ok(*command).split()


def declare(project: IIIProject, registry: Registry, network: str) -> None:
    project.config.write_text(
        f"workers:\n  - name: iii-worker-manager\n    config: {{port: {project.port}}}\n"
        f"  - name: {NAME}\n    image: {registry.address}/math-worker:1.0\n"
        f"    sandbox: {{backend: bubblewrap, network: {network}}}\n"
    )


def test_the_engine_and_what_is_allowed_are_reached_and_nothing_else(
    project: IIIProject, registry: Registry, world: World
) -> None:
    project.ok("worker", "add", f"{registry.address}/math-worker:1.0")
    there = ("sh", "-c", 'cd "$0" && exec "$@"', project.folder)  # entering a mount namespace leads to its root
    project.wrapper = [str(word) for word in world.inside(*there)]
    declare(project, registry, "none")
    project.start()
    project.wait_running()
    project.wait_callable()
    project.assert_callable()
    assert reached(project, *TRIED) == []
    assert world.reached("machine") == world.reached("outside") == []

    declare(project, registry, "{egress: {allow: [10.9.9.0/24]}}")
    wait_for_network(project)
    project.wait_callable()
    project.assert_callable()
    assert reached(project, *TRIED, "private.test", "loop.test", "outside.test") == [
        *(OUTSIDE, PRIVATE),
        *("private.test", "outside.test"),
    ]
    assert set(world.reached("outside")) == {f"tcp {OUTSIDE} {PORT}", f"tcp {PRIVATE} {PORT}"}
    assert set(world.reached("machine")) == {"udp 127.0.0.53 53"}


def wait_for_network(project: IIIProject) -> None:
    """Wait until the worker runs in its new sandbox.

    In this order: a worker that is told to run may still be the one of the old sandbox.
    """
    grep = ("worker", "exec", NAME, "--", "grep", "-q", "tap0", "/proc/net/dev")
    project.wait_for(lambda _: project.run(*grep).returncode == 0)
    project.wait_running()


def test_it_is_told_what_the_machine_lacks(project: IIIProject, registry: Registry, tmp_path: Path) -> None:
    """With the command that adds it: by the engine, and by those who tell what there is."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for place in os.environ["PATH"].split(os.pathsep):
        for program in Path(place).glob("*") if Path(place).is_dir() else ():
            if program.name != "slirp4netns" and not (folder / program.name).is_symlink():
                (folder / program.name).symlink_to(program)
    project.environ["PATH"] = str(folder)
    declare(project, registry, "egress")
    project.start()
    found = project.wait_for(lambda facts: facts["error"])["error"]
    assert found["code"] == "W236"
    assert "slirp4netns is not installed" in found["message"]
    assert "apt install slirp4netns" in found["hint"]
    told = project.run("sandbox", "backends").stderr.decode()
    assert "lacks: egress, for slirp4netns is not installed: apt install slirp4netns" in told
    told = project.run("doctor").stderr.decode()
    assert "no sandbox can be let out: slirp4netns is not installed" in told
