"""The sandbox conformance kit, on a played VMM.

Its guest is the real agent, in a namespace sandbox. What only a guest's kernel and its disks can keep is checked on
guests that have them: real machines, made by QEMU of the config that the VMM was given.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from iii_sandbox_guest import Needs, prepare_boot
from iii_sandbox_guest.boot import VIRTIO_LINK

from iii_core.sandbox.port import SandboxDriver
from iii_core.testing import sandbox_kit, sandbox_kit_faults, sandbox_kit_options

from .vmmkit import Bench

pytestmark = [pytest.mark.integration, pytest.mark.long]
OF_THE_KERNEL = (
    sandbox_kit_faults.check_limits_are_kept,
    sandbox_kit_faults.check_users,
    sandbox_kit_options.check_disk_size,
)


@pytest.mark.parametrize(
    "check", [check for check in sandbox_kit.CHECKS if check not in OF_THE_KERNEL], ids=lambda check: check.__name__
)
async def test_conformance(check: sandbox_kit.Check, bench: Bench) -> None:
    await check(bench.under_test())


IN_A_MACHINE = (
    *OF_THE_KERNEL,
    sandbox_kit.check_writes_survive_restart,
    sandbox_kit_faults.check_stop_waits_for_grace,
)


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("check", IN_A_MACHINE, ids=lambda check: check.__name__)
async def test_conformance_of_machines(check: sandbox_kit.Check, bench: Bench) -> None:
    initramfs = prepare_boot(bench.context.home, needs=Needs(link=VIRTIO_LINK)).initramfs

    @asynccontextmanager
    async def open_backend() -> AsyncGenerator[SandboxDriver]:
        async with bench.open({"machine": str(initramfs)}) as driver:
            yield driver

    await check(replace(bench.under_test(), open=open_backend))


@pytest.mark.long
async def test_what_a_machine_says_is_on_its_console(bench: Bench) -> None:
    """Its kernel panics without an init: then it reboots, and that is the end of it."""
    empty = bench.folder / "empty.cpio"
    empty.write_bytes(b"")
    async with bench.open({"machine": str(empty)}) as driver:
        await driver.create(bench.spec())
        await driver.start("one")
        with trio.fail_after(50):
            event = await driver.events().receive()
    assert "Kernel panic" in event.console_tail
