"""A one-shot worker on another machine: it connects to a remote engine, does its work, and leaves (seed 003).

The two machines are two network namespaces joined by a veth pair, so nothing of this machine's network is touched.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from iiitools.sdks import SDKS, Sdk, install
from iiitools.testnet import enter, open_namespaces
from iiitools.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from conftest import IIIProject

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces with veth need root"),
]
ENGINE, WORKER = "10.203.0.1", "10.203.0.2"
ONE_SHOT = """
import os, sys
from iii import InitOptions, register_worker
worker = register_worker(os.environ["III_URL"], InitOptions(worker_name="job"))
print(worker.trigger({"function_id": "engine::workers::list", "payload": {}})["workers"][0]["ip_address"])
worker.shutdown()
"""


@dataclass(frozen=True)
class TwoMachines:
    """Two machines, by the process that their namespaces live by."""

    engine: int
    worker: int


@pytest.fixture
def machines() -> Iterator[TwoMachines]:
    with open_namespaces() as engine, open_namespaces() as worker:

        def ip(machine: int, *arguments: str) -> None:
            subprocess.run([*enter(machine, "ip"), *arguments], check=True, capture_output=True, timeout=10)

        ip(engine, "link", "add", "v0", "type", "veth", "peer", "name", "v1", "netns", str(worker))
        for machine, device, address in ((engine, "v0", ENGINE), (worker, "v1", WORKER)):
            ip(machine, "link", "set", "lo", "up")
            ip(machine, "addr", "add", f"{address}/24", "dev", device)
            ip(machine, "link", "set", device, "up")
        yield TwoMachines(engine, worker)


@pytest.fixture
def sdk() -> Sdk:
    found = next(sdk for sdk in SDKS if sdk.label == "python-0.25.0")
    install([found])
    return found


def test_a_one_shot_worker_on_another_machine(machines: TwoMachines, project: IIIProject, sdk: Sdk) -> None:
    project.config.write_text(
        f"workers:\n- {{name: iii-worker-manager, config: {{host: {ENGINE}, port: {project.port}}}}}\n"
    )
    project.wrapper = ["nsenter", f"--net=/proc/{machines.engine}/ns/net"]  # it stays in the project's folder
    project.start()
    env = {"III_URL": f"ws://{ENGINE}:{project.port}", "OTEL_ENABLED": "false", "HOME": str(project.folder)}
    done = subprocess.run(
        enter(machines.worker, sdk.interpreter, "-c", ONE_SHOT),
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == WORKER
    listing = ["trigger", "engine::workers::list", "--address", ENGINE, "--port", str(project.port)]
    wait_until(
        lambda: all(worker["name"] != "job" for worker in json.loads(project.ok(*listing))["workers"]),
        told=lambda: "the worker that shut down is still listed",
    )
