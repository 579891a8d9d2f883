"""The plugin against the kit that every transport must pass."""

from __future__ import annotations

import pytest

from iii_core.testing import transport_kit
from iii_core.testing.transport_harness import TransportUnderTest


@pytest.mark.parametrize(
    "check", [*transport_kit.CHECKS, *transport_kit.STREAM_CHECKS], ids=lambda check: check.__name__
)
async def test_conformance(check: transport_kit.Check, websocket: TransportUnderTest) -> None:
    await check(websocket)
