"""iii-sandbox-gate: the hook implementations of this distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iii_core import hookimpl
from iii_core.records import Check

if TYPE_CHECKING:
    from collections.abc import Iterable


@hookimpl
def iii_checks() -> Iterable[Check]:
    """Declare a row of ``iii doctor``."""
    from iii_sandbox_gate import checks

    yield Check(name="sandbox-network", run=checks.check_gate)
