"""Workers that nobody calls for a while. Their SDKs ping, and give up on an engine that does not answer."""

from __future__ import annotations

import pytest
import trio

from iiitools.sdks import Sdk

from .conftest import Hub, Idlers
from .driver import Client

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

PYTHON_GIVES_UP = 40.0  # a ping after 20 s, and 20 s of patience
NODE_GIVES_UP = 60.0  # 0.22 hangs up on an engine from which nothing comes, not even a pong


async def hold(hub: Hub, idlers: Idlers, fleet: dict[Sdk, Client], sdk: Sdk, seconds: float) -> None:
    await trio.sleep_until(idlers.since + seconds)
    assert hub.worker_ids(f"idle-{sdk.label}") == [idlers.worker_ids[sdk]]
    result = await fleet[sdk].call(f"idle::{sdk.label}", {})
    assert result["name"] == f"idle-{sdk.label}"


async def test_an_idle_worker_keeps_its_connection(
    hub: Hub, idlers: Idlers, fleet: dict[Sdk, Client], sdk: Sdk
) -> None:
    await hold(hub, idlers, fleet, sdk, PYTHON_GIVES_UP + 3)


@pytest.mark.long
async def test_an_idle_worker_keeps_its_connection_for_more_than_a_minute(
    hub: Hub, idlers: Idlers, fleet: dict[Sdk, Client], sdk: Sdk
) -> None:
    await hold(hub, idlers, fleet, sdk, NODE_GIVES_UP + 3)
