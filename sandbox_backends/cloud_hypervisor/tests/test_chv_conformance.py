"""The sandbox conformance kit, on a played VMM whose guest is the real agent.

Left out are the checks of what only a guest's kernel and its disks can keep: limits, users, the disk's size.
"""

from __future__ import annotations

import pytest

from iii_core.testing import sandbox_kit, sandbox_kit_faults, sandbox_kit_options

from .vmmkit import Bench

pytestmark = pytest.mark.integration
OF_THE_KERNEL = {
    sandbox_kit_faults.check_limits_are_kept,
    sandbox_kit_faults.check_users,
    sandbox_kit_options.check_disk_size,
}


@pytest.mark.parametrize(
    "check", [check for check in sandbox_kit.CHECKS if check not in OF_THE_KERNEL], ids=lambda check: check.__name__
)
async def test_conformance(check: sandbox_kit.Check, bench: Bench) -> None:
    await check(bench.under_test())
