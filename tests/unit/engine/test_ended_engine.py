"""An engine or a client that outlives its block says so, instead of doing nothing or raising what trio does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from inspect import isawaitable
from typing import Any, cast

import msgspec
import pytest
import trio
import trio.testing

from iii_core.engine import EngineClient, EngineConfig, open_engine
from iii_core.errors import EngineError, IIIError
from iii_core.records import InProcessWorker, OpenContext
from iii_core.testing.memory_transport import MemoryNetwork, MemoryPlugins


class Settings(msgspec.Struct, frozen=True):
    """None."""


async def settled(use: Callable[[], Any]) -> Any:
    result = use()
    return await result if isawaitable(result) else result


async def never(_: Any) -> None:
    await trio.sleep_forever()


async def test_everything_is_refused() -> None:
    async with open_engine() as engine:
        client = engine.client("mine")
    uses: list[Callable[[], Any]] = [
        lambda: engine.trigger("engine::workers::list"),
        lambda: engine.fire("engine::workers::list"),
        lambda: engine.client("another"),
        lambda: engine.apply(EngineConfig()),
        lambda: engine.wait_for_worker(lambda _: True),
        lambda: engine.serve_stream(cast("trio.abc.Stream", None)),
        lambda: client.trigger("engine::workers::list"),
        lambda: client.fire("engine::workers::list"),
        lambda: client.register_function("a::b", never),
        lambda: client.register_trigger("a", "a::b"),
        client.create_channel,
    ]
    for use in uses:
        with pytest.raises(EngineError) as caught:
            await settled(use)
        assert caught.value.code in ("W200", "W201")
        assert caught.value.hint
    assert engine.workers == ()
    await engine.stop_workers()


async def test_who_waits_is_told() -> None:
    told: list[str] = []

    async def wait(use: Callable[[], Awaitable[Any]]) -> None:
        try:
            await use()
        except IIIError as error:
            told.append(error.code)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery, open_engine() as engine:
            engine.client("mine").register_function("a::forever", never)
            caller = engine.client("caller")
            nursery.start_soon(wait, partial(caller.trigger, "a::forever"))
            nursery.start_soon(wait, partial(engine.wait_for_worker, lambda _: False))  # noqa: ASYNC111 - to outlive it
            await trio.testing.wait_all_tasks_blocked()
    assert sorted(told) == ["W201", "invocation_stopped"]


async def test_a_worker_that_cleans_up_still_has_its_client() -> None:
    said: list[Any] = []

    @asynccontextmanager
    async def open_one(config: Settings, client: EngineClient, context: OpenContext) -> AsyncIterator[None]:
        try:
            yield
        finally:
            with trio.move_on_after(2, shield=True):
                said.append(len((await client.trigger("engine::workers::list", {}))["workers"]))

    record = InProcessWorker(name="one", config=Settings, open=open_one)
    with trio.CancelScope() as scope:
        plugins = MemoryPlugins(MemoryNetwork(), record)
        async with open_engine(EngineConfig(workers={"one": {}}), plugins=plugins):
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert len(said) == 1
