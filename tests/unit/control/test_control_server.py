"""The engine's end of the control socket: answers, progress, errors, and clients that leave."""

from __future__ import annotations

import json
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from iii_core.control.server import Call, Operation, serve_control
from iii_core.errors import WorkerNotRunning
from iii_core.images.port import Progress
from iii_core.link.mux import Closed, Message, Mux, MuxStream, Role, open_mux

if TYPE_CHECKING:
    from pathlib import Path

Handler = Callable[[Call], Awaitable[Any]]


@asynccontextmanager
async def serving(path: Path, **handlers: Handler) -> AsyncIterator[None]:
    table = {name: Operation(handler, streaming=name.startswith("stream")) for name, handler in handlers.items()}
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, path, table)
        yield
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def client(path: Path) -> AsyncIterator[Mux]:
    async with open_mux(await trio.open_unix_socket(path), role=Role.INITIATOR) as mux:
        yield mux


async def ask(mux: Mux, op: str, **args: Any) -> MuxStream:
    return await mux.open(json.dumps({"op": op, "args": args}).encode())


async def answers(stream: MuxStream) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    with trio.fail_after(20):
        while not isinstance(item := await stream.receive(), Closed):
            assert isinstance(item, Message)
            found.append(json.loads(item.payload))
    await stream.close()
    return found


def mode(path: Path) -> int | None:
    return stat.S_IMODE(path.stat().st_mode) if path.exists() else None


def leave_a_file(path: Path) -> None:
    path.write_text("left by a dead engine")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


async def test_a_request_is_answered_and_the_socket_is_private(path: Path) -> None:
    async def echo(call: Call) -> Any:
        return call.args

    leave_a_file(path)
    async with serving(path, echo=echo), client(path) as mux:
        assert mode(path) == 0o600
        assert await answers(await ask(mux, "echo", a=[1])) == [{"result": {"a": [1]}}]
    assert mode(path) is None


async def test_progress_comes_before_the_result_and_never_waits(path: Path) -> None:
    async def busy(call: Call) -> Any:
        for number in range(1000):
            call.report(Progress(stage="downloading", item="layer", done=number, total=1000))
        await trio.testing.wait_all_tasks_blocked()
        return "done"

    async with serving(path, busy=busy), client(path) as mux:
        *steps, last = await answers(await ask(mux, "busy"))
    assert last == {"result": "done"}
    assert steps[0] == {"progress": {"stage": "downloading", "item": "layer", "done": 0, "total": 1000}}
    assert len(steps) < 1000


async def test_errors_keep_their_code_hint_and_details(path: Path) -> None:
    async def fail(call: Call) -> Any:
        async with trio.open_nursery():
            raise WorkerNotRunning("no", hint="start it", details={"name": "w"})

    async def broken(call: Call) -> Any:
        raise ZeroDivisionError("oops")

    async with serving(path, fail=fail, broken=broken), client(path) as mux:
        assert await answers(await ask(mux, "fail")) == [
            {"error": {"code": "W113", "message": "no", "hint": "start it", "details": {"name": "w"}}}
        ]
        (internal,) = await answers(await ask(mux, "broken"))
        assert internal["error"]["code"] == "W900"
        (unknown,) = await answers(await ask(mux, "nope"))
        assert unknown["error"]["code"] == "W105"
        for payload in (b"not json", b"[]", b'{"args": {}}', b'{"op": "fail", "args": 5}'):
            (malformed,) = await answers(await mux.open(payload))
            assert malformed["error"]["code"] == "W105"


@pytest.mark.parametrize("leave", ["stream", "connection"])
async def test_a_client_that_leaves_cancels_what_it_asked_for_and_nothing_else(path: Path, leave: str) -> None:
    cancelled = trio.Event()
    begun = trio.Event()

    async def forever(call: Call) -> Any:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async def echo(call: Call) -> Any:
        return "still here"

    async with serving(path, forever=forever, echo=echo), client(path) as other:
        with trio.fail_after(20):
            async with client(path) as mux:
                stream = await ask(mux, "forever")
                await begun.wait()
                if leave == "stream":
                    await stream.close()
                    await cancelled.wait()
            await cancelled.wait()
        assert await answers(await ask(other, "echo")) == [{"result": "still here"}]


async def test_a_streaming_operation_has_its_stream_to_itself(path: Path) -> None:
    async def stream_upper(call: Call) -> Any:
        total = b""
        while not total.endswith(b"!"):
            item = await call.stream.receive()
            total += getattr(item, "data", b"")
        await call.stream.send_data(1, total.upper())
        return len(total)

    async with serving(path, stream_upper=stream_upper), client(path) as mux:
        stream = await ask(mux, "stream_upper")
        await stream.send_data(0, b"hello!")
        received = [await stream.receive() for _ in range(3)]
        assert [getattr(item, "data", None) or getattr(item, "payload", None) for item in received[:2]] == [
            b"HELLO!",
            b'{"result":6}',
        ]
        await stream.close()


async def test_nonsense_ends_one_connection_only(path: Path) -> None:
    async def echo(call: Call) -> Any:
        return "fine"

    async with serving(path, echo=echo):
        rude = await trio.open_unix_socket(path)
        async with rude:
            await rude.send_all(b"GET / HTTP/1.1\r\n\r\n" * 10)
        async with client(path) as mux:
            assert await answers(await ask(mux, "echo")) == [{"result": "fine"}]


async def test_an_answer_that_is_too_long_is_said(path: Path) -> None:
    async def long(call: Call) -> Any:
        return "x" * (8 << 20)

    async def echo(call: Call) -> Any:
        return "fine"

    async with serving(path, long=long, echo=echo), client(path) as mux:
        error = (await answers(await ask(mux, "long")))[-1]["error"]
        assert error["code"] == "W204"
        assert "longer than a command takes" in error["message"]
        assert error["hint"].startswith("the engine goes on")
        assert await answers(await ask(mux, "echo")) == [{"result": "fine"}]
