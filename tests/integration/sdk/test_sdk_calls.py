"""Calls between SDKs: results, errors, void, metadata, sizes."""

from __future__ import annotations

import itertools
import signal

import pytest
from iiitools.sdks import SDKS, Sdk

from .conftest import Hub
from .driver import CallFailed, Client, end, open_client

pytestmark = pytest.mark.integration


def other_than(sdk: Sdk) -> Sdk:
    """The next SDK in the list, so that all take part as the other side."""
    return SDKS[(SDKS.index(sdk) + 1) % len(SDKS)]


@pytest.mark.parametrize(("caller", "callee"), list(itertools.product(SDKS, SDKS)), ids=lambda sdk: sdk.label)
async def test_any_calls_any(hub: Hub, fleet: dict[Sdk, Client], caller: Sdk, callee: Sdk) -> None:
    function_id = f"echo::{caller.label}::{callee.label}"
    await hub.offer(fleet[callee], function_id, "echo")
    payload = {"text": "grüße \N{GRINNING FACE}", "list": [1, 2.5, None, True], "deep": {"er": {}}}
    result = await fleet[caller].call(function_id, payload)
    (caller_id,) = hub.worker_ids(caller.label)
    assert result == {"echo": payload | {"_caller_worker_id": caller_id}, "metadata": None}
