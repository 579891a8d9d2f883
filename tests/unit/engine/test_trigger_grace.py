"""A worker that announces a trigger type has a moment to get ready for the triggers that waited for it."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from iii_core.engine.session import HANDLER_GRACE


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Everything here is in memory, so time may jump: what takes how long says nothing of the machine."""
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0.005)}


async def test_triggers_that_waited_come_after_a_moment(connect: Any) -> None:
    owner, provider = await connect(), await connect()
    for kind in ("one", "two"):
        await owner.send("registertrigger", id=kind, trigger_type=kind, function_id="f", config={})
    await owner.settle()
    announced = trio.current_time()
    for kind in ("one", "two"):
        await provider.send("registertriggertype", id=kind, description="d")
    for kind in ("one", "two"):
        assert (await provider.expect("registertrigger"))["id"] == kind
        assert HANDLER_GRACE <= trio.current_time() - announced < 3 * HANDLER_GRACE


async def test_where_none_has_waited_there_is_nothing_to_wait_for(connect: Any) -> None:
    owner, provider = await connect(), await connect()
    announced = trio.current_time()
    await provider.send("registertriggertype", id="hook", description="d")
    await provider.settle()
    await owner.send("registertrigger", id="t", trigger_type="hook", function_id="f", config={})
    await provider.expect("registertrigger")
    assert trio.current_time() == announced


async def test_a_worker_that_leaves_within_the_moment_provides_nothing(connect: Any) -> None:
    owner, provider = await connect(), await connect()
    await owner.send("registertrigger", id="t", trigger_type="hook", function_id="f", config={})
    await owner.settle()
    await provider.send("registertriggertype", id="hook", description="d")
    await provider.vanish()
    await trio.sleep(2 * HANDLER_GRACE)
    successor = await connect()
    await successor.send("registertriggertype", id="hook", description="d")
    assert (await successor.expect("registertrigger"))["id"] == "t"
