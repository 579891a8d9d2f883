"""Runs the sandbox conformance kit on the bubblewrap backend without pytest, for `test_bubblewrap_ordinary_user`.

usage: kitrunner.py IMAGE FOLDER; prints one JSON object per check: its name, and what went wrong (null: nothing).
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import trio
from iii_sandbox_bubblewrap.driver import open_driver
from iii_sandbox_bubblewrap.policy import Settings, capabilities
from iii_sandbox_gate.needs import find_lack

from iii_core.records import OpenContext
from iii_core.sandbox.port import Capability, RootImage, SandboxDriver
from iii_core.testing import sandbox_kit
from iii_core.testing.sandbox_harness import SandboxesUnderTest, agent_of, run, run_well, started


async def check_is_ordinary(under_test: SandboxesUnderTest) -> None:
    """No check of the kit: whether this run proves what it says; what users are told, and the locks inside."""
    assert os.getresuid() == (65534, 65534, 65534)
    ranged = sys.argv[3] == "range"
    assert (Capability.EGRESS in under_test.capabilities) is ranged  # who may open /dev/net/tun there
    async with started(under_test) as (driver, sandbox_id), agent_of(driver, sandbox_id) as agent:
        notes = " ".join((await driver.state(sandbox_id)).notes)
        assert ("only user id 0 exists" in notes) is not ranged, notes
        rows = (await run_well(agent, ("/bin/cat", "/proc/self/uid_map"))).split("\n")
        assert sum(int(row.split()[2]) for row in rows if row) == (65536 if ranged else 1)
        status, printed = await run(agent, ("/bin/cat", "/proc/self/status"), uid=1000 if ranged else None)
        assert status.as_shell() == 0
        for line in printed.splitlines():
            if line.startswith("Cap"):
                assert int(line.split()[1], 16) == 0, line


def main() -> None:
    image, folder = Path(sys.argv[1]), Path(sys.argv[2])
    for number, check in enumerate((check_is_ordinary, *sandbox_kit.CHECKS)):
        own = folder / str(number)
        for name in ("run", "sandboxes"):
            (own / name).mkdir(parents=True, mode=0o700)
        context = OpenContext(
            state_dir=own / "state", runtime_dir=own / "run", home=own / "home", environ={"PATH": os.environ["PATH"]}
        )

        def open_one(context: OpenContext = context) -> AbstractAsyncContextManager[SandboxDriver]:
            return open_driver(Settings(), context)

        under_test = SandboxesUnderTest(
            open=open_one,
            image=RootImage(path=image, format="squashfs", digest="sha256:" + "0" * 64),
            folder=own / "sandboxes",
            capabilities=capabilities(find_lack(os.environ)),
        )
        problem = None
        try:
            trio.run(check, under_test)
        except Exception:
            problem = traceback.format_exc()
        print(json.dumps({"check": check.__name__, "problem": problem}), flush=True)


main()
