"""Every boot becomes ready at its first try, emulated, on a machine of which one core is busy with something else.

The batches add up to 200 boots; `make test` boots the first 8. The first 50:

    .venv/bin/pytest -rP sandbox_backends/libvirt/tests/test_libvirt_boots.py -k 'not 200'
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import trio

from iii_core.errors import IIIError
from iii_core.sandbox.port import SandboxDriver

from .vmkit import Bench, agent_of

pytestmark = pytest.mark.integration
BURN = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"
SECONDS_PER_BOOT = 30
BATCHES = {"first 8": 8, "up to 50": 42, "up to 200": 150}


@dataclass
class Tally:
    """How a batch went: seconds to READY of those that became ready, and what was said of those that did not."""

    seconds: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        times = (
            f"median {statistics.median(self.seconds):.2f} s, longest {max(self.seconds):.2f} s" if self.seconds else ""
        )
        return f"{len(self.seconds)} of {len(self.seconds) + len(self.failed)} ready; {times}"


@pytest.fixture
def busy_core() -> Iterator[None]:
    """The last core has something to do for as long as the test runs."""
    core = max(os.sched_getaffinity(0))
    burner = subprocess.Popen([sys.executable, "-c", BURN, str(core)])
    try:
        yield
        assert burner.poll() is None
    finally:
        burner.kill()
        burner.wait()


@pytest.mark.parametrize(
    "boots",
    [
        pytest.param(
            count,
            id=name,
            marks=[pytest.mark.timeout(SECONDS_PER_BOOT * count), *([pytest.mark.full] if count > 8 else [])],
        )
        for name, count in BATCHES.items()
    ],
)
async def test_every_boot_becomes_ready(bench: Bench, boots: int, busy_core: None) -> None:
    tally = Tally()
    with bench.nothing_remains():
        async with bench.driver() as driver:
            for number in range(boots):
                await boot(bench, driver, f"box-{number}", tally)
    print(tally)
    assert not tally.failed, "\n".join([str(tally), *tally.failed])


async def boot(bench: Bench, driver: SandboxDriver, name: str, tally: Tally) -> None:
    """One boot, from the order to READY; no second try."""
    spec = bench.spec(name)
    await driver.create(spec)
    begin = time.monotonic()
    try:
        await driver.start(name)
        async with agent_of(driver, name):
            tally.seconds.append(time.monotonic() - begin)
    except* IIIError as errors:
        said = spec.console.read_text(errors="replace")[-2000:] if await trio.Path(spec.console).exists() else ""
        tally.failed.append(f"{name} after {time.monotonic() - begin:.1f} s: {errors.exceptions[0]}\n{said}")
    await driver.destroy(name, keep_writable=False)
