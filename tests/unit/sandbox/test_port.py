"""What is asked of a backend that has it, has it not, or could have it."""

from __future__ import annotations

import pytest

from iii_core.errors import UnsupportedOperation
from iii_core.sandbox.port import Capability, Egress, Lack, check_supported
from iii_core.workers.spec import WorkerSpec

ASKING = WorkerSpec(name="w", source="x", egress=Egress())
LACKS = {Capability.EGRESS: Lack("gatekeeper is not installed", "apt install gatekeeper")}


def test_what_is_declared_may_be_asked() -> None:
    check_supported(ASKING, frozenset({Capability.EGRESS}), "x", LACKS)
    check_supported(WorkerSpec(name="w", source="x"), frozenset(), "x", LACKS)


def test_what_is_not_declared_is_refused() -> None:
    with pytest.raises(UnsupportedOperation, match=r"backend x does not support network access$") as caught:
        check_supported(ASKING, frozenset(), "x")
    assert "choose a backend that has it" in (caught.value.hint or "")


def test_what_is_lacking_here_is_told_with_what_helps() -> None:
    with pytest.raises(UnsupportedOperation, match="network access here: gatekeeper is not installed") as caught:
        check_supported(ASKING, frozenset(), "x", LACKS)
    assert caught.value.hint == "apt install gatekeeper"
    assert caught.value.details == {"backend": "x", "capability": "egress"}
