"""Streaming channels (spec protocol §2)."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
import trio
import trio.testing

from iii_core.engine.core import CoreWorker
from iii_core.errors import EngineError, InvocationError
from iii_core.protocol.limits import EngineLimits
from iii_core.transport.port import Message


def text(content: str) -> Message:
    return Message(data=content.encode())


def binary(content: bytes) -> Message:
    return Message(data=content, text=False)


class Ends:
    """A channel made over the wire, and ways to open its ends."""

    def __init__(self, bench: Any, refs: dict[str, Any]) -> None:
        self.bench = bench
        self.refs = refs

    async def open(self, end: str, **changed: str) -> Any:
        ref = self.refs[end] | changed
        query = f"key={quote(ref['access_key'])}&dir={ref['direction']}"
        return await self.bench.transport.connect(f"{self.bench.url}ws/channels/{ref['channel_id']}?{query}")


async def create(bench: Any, **given: Any) -> Ends:
    worker = await bench.worker()
    return Ends(bench, await worker.call("engine::channels::create", given))


def table(bench: Any) -> Any:
    core = bench.engine.router.workers["iii-engine-functions"]
    assert isinstance(core, CoreWorker)
    return core.channels


async def test_both_references_share_id_and_key(bench: Any) -> None:
    refs = (await create(bench, buffer_size=16)).refs
    assert refs.keys() == {"writer", "reader"}
    assert [refs[end].pop("direction") for end in ("writer", "reader")] == ["write", "read"]
    assert refs["writer"] == refs["reader"]
    assert refs["writer"].keys() == {"channel_id", "access_key"}


async def test_messages_keep_kind_boundaries_and_order(bench: Any) -> None:
    ends = await create(bench)
    writer, reader = await ends.open("writer"), await ends.open("reader")
    messages = [text("a"), binary(b"\x00\xff"), text(""), binary(b""), text("é" * 1000)]
    for message in messages:
        await writer.send(message)
    assert [await reader.receive() for _ in messages] == messages
    await writer.close(1000, "stream_complete")
    with pytest.raises(trio.EndOfChannel):
        await reader.receive()
    assert reader.close_code == 1005, "a close frame without a code"
    await trio.testing.wait_all_tasks_blocked()
    assert len(table(bench)) == 0


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_the_writer_may_be_done_before_the_reader_comes(bench: Any, how: str) -> None:
    ends = await create(bench)
    writer = await ends.open("writer")
    for number in range(10):
        await writer.send(text(str(number)))
    await trio.testing.wait_all_tasks_blocked()
    if how == "close":
        await writer.close()
    else:
        writer.abort()
    await trio.testing.wait_all_tasks_blocked()
    reader = await ends.open("reader")
    assert [(await reader.receive()).data for _ in range(10)] == [str(number).encode() for number in range(10)]
    with pytest.raises(trio.EndOfChannel):
        await reader.receive()


@pytest.mark.parametrize(
    ("given", "items"), [({}, 64), ({"buffer_size": 3}, 3), ({"buffer_size": 0}, 1), ({"buffer_size": "7"}, 64)]
)
async def test_a_full_buffer_stops_the_writer_and_loses_nothing(open_bench: Any, given: Any, items: int) -> None:
    async with open_bench(buffer=10) as bench, trio.open_nursery() as nursery:
        ends = await create(bench, **given)
        writer = await ends.open("writer")
        sent = 0

        async def write() -> None:
            nonlocal sent
            for number in range(200):
                await writer.send(text(f"{number:010}"))
                sent += 1

        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        assert items <= sent <= items + 3
        reader = await ends.open("reader")
        for number in range(200):
            assert (await reader.receive()).data == f"{number:010}".encode()


async def test_the_buffer_is_bounded_in_bytes_too(open_bench: Any) -> None:
    async with open_bench(limits=EngineLimits(channel_bytes=1000), buffer=10) as bench, trio.open_nursery() as nursery:
        ends = await create(bench, buffer_size=1000)
        writer = await ends.open("writer")
        sent = 0

        async def write() -> None:
            nonlocal sent
            for size in (100_000, *[300] * 20):
                await writer.send(binary(bytes(size)))
                sent += 1

        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        assert sent < 5
        reader = await ends.open("reader")
        assert sum([len((await reader.receive()).data) for _ in range(21)]) == 106_000


@pytest.mark.parametrize("waiting", [True, False], ids=["writer-waits", "writer-idle"])
async def test_a_reader_that_leaves_ends_the_writer(open_bench: Any, waiting: bool) -> None:
    async with open_bench(buffer=10) as bench:
        ends = await create(bench, buffer_size=1)
        writer, reader = await ends.open("writer"), await ends.open("reader")
        async with trio.open_nursery() as nursery:
            if waiting:

                async def flood() -> None:
                    while True:
                        await writer.send(binary(bytes(100)))

                async def write() -> None:
                    with pytest.raises(trio.BrokenResourceError):
                        await flood()

                nursery.start_soon(write)
            await reader.send(text("what a reader says is ignored"))
            await trio.testing.wait_all_tasks_blocked()
            await reader.close()
            with trio.fail_after(20), pytest.raises(trio.BrokenResourceError):
                await writer.receive()
        assert writer.close_code is None
        assert len(table(bench)) == 0


async def test_unknown_channels_wrong_keys_and_wrong_queries(bench: Any) -> None:
    ends = await create(bench)
    for changed in ({"channel_id": "x"}, {"access_key": "x"}, {"access_key": "é"}):
        with pytest.raises(EngineError, match="404"):
            await ends.open("writer", **changed)
    for changed in ({"access_key": ""}, {"direction": "both"}):
        with pytest.raises(EngineError, match="400"):
            await ends.open("writer", **changed)
    assert len(table(bench)) == 1


@pytest.mark.parametrize("end", ["writer", "reader"])
async def test_each_end_can_be_taken_once(bench: Any, end: str) -> None:
    ends = await create(bench)
    first, second = await ends.open(end), await ends.open(end)
    with pytest.raises(trio.EndOfChannel):
        await second.receive()
    other = await ends.open("reader" if end == "writer" else "writer")
    sender, receiver = (first, other) if end == "writer" else (other, first)
    await sender.send(text("still"))
    assert await receiver.receive() == text("still")


async def test_a_channel_outlives_its_creator(bench: Any) -> None:
    worker = await bench.worker()
    ends = Ends(bench, await worker.call("engine::channels::create", {}))
    await worker.vanish()
    writer, reader = await ends.open("writer"), await ends.open("reader")
    await writer.send(text("x"))
    assert await reader.receive() == text("x")


async def test_channels_with_an_untaken_end_are_swept(bench: Any) -> None:
    untaken, half, whole = [await create(bench) for _ in range(3)]
    writer = await half.open("writer")
    await writer.send(text("never read"))
    ends = [await whole.open(end) for end in ("writer", "reader")]
    await trio.testing.wait_all_tasks_blocked()
    table(bench).sweep(trio.current_time() - 100)
    assert len(table(bench)) == 3, "they are young"
    table(bench).sweep(trio.current_time() + 1)
    assert len(table(bench)) == 1
    with pytest.raises(trio.BrokenResourceError):
        await writer.receive()
    for gone in (untaken, half):
        with pytest.raises(EngineError, match="404"):
            await gone.open("reader")
    await ends[0].send(text("alive"))
    assert await ends[1].receive() == text("alive")


async def test_channels_are_capped_per_worker(open_bench: Any) -> None:
    async with open_bench(limits=EngineLimits(channels=2)) as bench:
        worker, other = await bench.worker(), await bench.worker()
        for _ in range(2):
            await worker.call("engine::channels::create", None)
        assert (await worker.call_error("engine::channels::create", {}))["code"] == "limit_exceeded"
        await other.call("engine::channels::create", {})


async def test_a_stuck_channel_slows_no_worker(open_bench: Any) -> None:
    async with open_bench(buffer=10) as bench, trio.open_nursery() as nursery:
        ends = await create(bench, buffer_size=1)
        writer = await ends.open("writer")

        async def write() -> None:
            while True:
                await writer.send(binary(bytes(100)))

        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        worker = await bench.worker()
        with trio.fail_after(20):
            await worker.call("engine::workers::list", {})
        nursery.cancel_scope.cancel()


async def test_in_process_ends(bench: Any) -> None:
    client = bench.engine.client("http")
    writer_ref, reader_ref = client.create_channel(buffer_size=2)
    ends = Ends(bench, {"writer": writer_ref, "reader": reader_ref})
    remote = await ends.open("reader")
    with client.open_writer(writer_ref) as writer:
        await writer.send(text("a"))
        await writer.send(binary(b"b"))
    assert [await remote.receive() for _ in range(2)] == [text("a"), binary(b"b")]
    with pytest.raises(trio.EndOfChannel):
        await remote.receive()
    with pytest.raises(trio.ClosedResourceError):
        await writer.send(text("late"))

    ends = await create(bench)
    writer_socket = await ends.open("writer")
    with client.open_reader(ends.refs["reader"]) as reader:
        with pytest.raises(EngineError, match="taken"):
            client.open_reader(ends.refs["reader"])
        await writer_socket.send(text("x"))
        await writer_socket.close()
        assert [message async for message in reader] == [text("x")]
    for wrong in ({}, {"channel_id": "x", "access_key": "y"}):
        with pytest.raises(EngineError, match="no such channel"):
            client.open_reader(wrong)


async def test_an_in_process_reader_that_leaves(bench: Any) -> None:
    client = bench.engine.client("http")
    writer_ref, reader_ref = client.create_channel()
    writer = client.open_writer(writer_ref)
    client.open_reader(reader_ref).cancel()
    with pytest.raises(trio.BrokenResourceError):
        await writer.send(text("x"))
    await writer.cancelled()


async def test_the_cap_holds_for_in_process_workers(open_bench: Any) -> None:
    async with open_bench(limits=EngineLimits(channels=1)) as bench:
        client = bench.engine.client("http")
        client.create_channel()
        with pytest.raises(InvocationError, match="limit_exceeded"):
            client.create_channel()
