"""Runs commands in a sandbox, all at once, as an engine would; for `test_egress`, which runs it in a world of its own.

usage: egressrunner.py FOLDER, with JSON on stdin::

    {"backend": "…", "settings": {…}, "image": "…", "home": "…", "egress": null | {"allow": […], "nameservers": […]},
     "memory": MiB | null, "commands": [[word, …], …]}

Prints ``[[exit code, output], …]``, or ``{"error": code, "message": …, "hint": …}``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import trio

from iii_core.errors import IIIError
from iii_core.records import OpenContext
from iii_core.sandbox.agent import Agent
from iii_core.sandbox.hostclient import open_sandbox_host
from iii_core.sandbox.port import Egress, Limits, RootImage, SandboxSpec
from iii_core.testing.sandbox_harness import agent_of, run


async def run_all(folder: Path, wish: dict[str, Any]) -> list[tuple[int, str]]:
    context = OpenContext(
        state_dir=folder / "state", runtime_dir=folder / "run", home=Path(wish["home"]), environ=dict(os.environ)
    )
    egress = wish["egress"] and Egress(**{name: tuple(value) for name, value in wish["egress"].items()})
    spec = SandboxSpec(
        id="box",
        root=RootImage(path=Path(wish["image"]), format="squashfs", digest="sha256:" + "0" * 64),
        writable_dir=folder / "layer",
        console=folder / "console",
        hostname="box",
        limits=Limits(memory_mib=wish["memory"]),
        egress=egress,
    )
    async with open_sandbox_host(context, config={wish["backend"]: wish["settings"]}) as host:
        driver = await host.driver(wish["backend"])
        await driver.create(spec)
        await driver.start("box")
        results: dict[int, tuple[int, str]] = {}

        async def run_one(agent: Agent, number: int) -> None:
            status, printed = await run(agent, wish["commands"][number])
            results[number] = (status.as_shell(), printed)

        async with agent_of(driver, "box") as agent, trio.open_nursery() as nursery:
            for number in range(len(wish["commands"])):
                nursery.start_soon(run_one, agent, number)
        await driver.destroy("box", keep_writable=False)
        return [results[number] for number in sorted(results)]


def main() -> None:
    try:
        found: Any = trio.run(run_all, Path(sys.argv[1]), json.load(sys.stdin))
    except* IIIError as group:
        error = group.exceptions[0]
        assert isinstance(error, IIIError)
        found = {"error": error.code, "message": error.message, "hint": error.hint}
    print(json.dumps(found))


main()
