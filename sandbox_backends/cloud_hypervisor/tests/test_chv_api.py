"""One call of the API at a time, to a VMM that answers in all ways but the right one."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from iii_sandbox_cloud_hypervisor.api import MAX_ANSWER, Api, ApiError, open_api

from iii_core.testing.sandbox_harness import cancelled_at

from .vmmkit import descriptors

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
PING = b'{"version": "v1"}'


@asynccontextmanager
async def answering(path: Path, *answers: bytes, seconds: float = 5) -> AsyncGenerator[Api]:
    """A socket that takes what it is sent and gives these answers, one for each connection, and hangs up."""

    async def serve(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        for answer in answers:
            connected, _ = await listener.accept()
            async with trio.SocketStream(connected) as stream:
                await stream.receive_some()
                try:
                    await stream.send_all(answer)
                except trio.BrokenResourceError:
                    continue  # it had enough

    with trio.socket.socket(socket.AF_UNIX) as listener:
        await listener.bind(str(path))
        listener.listen(4)
        async with trio.open_nursery() as nursery, open_api(path, seconds) as api:
            await nursery.start(serve)
            yield api
            nursery.cancel_scope.cancel()


def response(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode() + body


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "Server disconnected without sending a response"),
        (b"HTTP/1.1 200 OK\r\n", "Server disconnected without sending a response"),
        (OK + b"Content-Length: 500\r\n\r\n{", "peer closed connection without sending complete message body"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{", "peer closed connection without sending complete"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "illegal chunk header"),
        (OK + b"Content-Length: -5\r\n\r\n", "bad Content-Length"),
        (b"\xff\xfe\x00 no HTTP\r\n\r\n", "illegal status line"),
        (b"x" * 200_000, "Receive buffer too long"),
        (OK + b"Content-Length: 9999999\r\n\r\n" + b"[" * (2 << 20), f"longer than {MAX_ANSWER} bytes"),
        (OK + b"\r\n" + b"[" * (2 << 20), f"longer than {MAX_ANSWER} bytes"),
        (response(b""), "cannot be understood: Input data was truncated"),
        (response(b'{"version": 1}'), "cannot be understood: Expected `str`, got `int`"),
        (response(b'{"half": [1, 2'), "cannot be understood"),
        (response(b'{"version": "\xff"}'), "cannot be understood"),
        (response(b"[" * 100_000), "cannot be understood"),
        (response(b"null"), "cannot be understood"),
        (response(b"", "404 Not Found"), "the VMM answered 404: nothing"),
        (response(b"", "302 Found", Location="http://example.org/"), "the VMM answered 302: nothing"),
        (response(b"no \x1b[31mway\n", "400 Bad Request"), "the VMM answered 400: no [31mway"),
        (response(b"\x00\x01\xff", "503 Busy"), "the VMM answered 503: nothing"),
        (response(b'["Error from API", "not\\nnow"]', "500 Error"), "answered 500: Error from API: not now"),
        (response(b'{"a": 1}', "500 Error"), 'answered 500: {"a": 1}'),
        (response(b"x" * 9999, "500 Error"), "answered 500: " + "x" * 500),
    ],
)
async def test_every_wrong_answer_has_words(tmp_path: Path, answer: bytes, words: str) -> None:
    async with answering(tmp_path / "s", answer) as api:
        with pytest.raises(ApiError) as caught:
            await api.ping()
    assert str(caught.value).startswith("vmm.ping: ")
    assert words in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600
    assert caught.value.status == (
        int(answer[9:12]) if answer.startswith(b"HTTP/1.1") and b"200 OK" not in answer else None
    )


async def test_a_broken_call_spoils_no_other(tmp_path: Path) -> None:
    async with answering(tmp_path / "s", b"", response(PING)) as api:
        with pytest.raises(ApiError):
            await api.ping()
        assert (await api.ping()).version == "v1"


async def test_nobody_there(tmp_path: Path) -> None:
    async with open_api(tmp_path / "s", 1) as api:
        with pytest.raises(ApiError, match="No such file"):
            await api.boot()


async def test_nobody_answers(tmp_path: Path) -> None:
    with trio.socket.socket(socket.AF_UNIX) as listener:
        await listener.bind(str(tmp_path / "s"))
        listener.listen(1)
        async with open_api(tmp_path / "s", 0.1) as api:
            with pytest.raises(ApiError, match=r"vm.boot: the VMM did not answer within 0.1 s"):
                await api.boot()


async def test_an_answer_that_never_ends(tmp_path: Path) -> None:
    """The time is that of the whole call, not of each piece."""
    path = tmp_path / "s"

    async def drip() -> None:
        connected, _ = await listener.accept()
        async with trio.SocketStream(connected) as stream:
            await stream.send_all(OK + b"Content-Length: 1000\r\n\r\n")
            while True:
                await stream.send_all(b" ")
                await trio.sleep(0.02)

    with trio.socket.socket(socket.AF_UNIX) as listener:
        await listener.bind(str(path))
        listener.listen(1)
        async with open_api(path, 0.2) as api, trio.open_nursery() as nursery:
            nursery.start_soon(drip)
            with pytest.raises(ApiError, match="did not answer within"):
                await api.info()
            nursery.cancel_scope.cancel()


async def test_what_is_sent(tmp_path: Path) -> None:
    """All of it: the VMM's HTTP is a small one, and proxies, cookies and user agents are none of its business."""
    sent: list[bytes] = []

    async def take(method: Callable[[], Awaitable[object]], end: bytes) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(method)
            connected, _ = await listener.accept()
            async with trio.SocketStream(connected) as stream:
                data = b""
                while not data.endswith(end):
                    data += await stream.receive_some()
                sent.append(data)
                await stream.send_all(response(b'{"version": "v1", "config": {}, "state": "Created"}'))

    with trio.socket.socket(socket.AF_UNIX) as listener:
        await listener.bind(str(tmp_path / "s"))
        listener.listen(1)
        async with open_api(tmp_path / "s", 5) as api:
            await take(api.info, b"\r\n\r\n")
            await take(lambda: api.create({"payload": {}}), b"}")
            await take(api.shutdown, b"\r\n\r\n")
    assert sent == [
        b"GET /api/v1/vm.info HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n",
        b"PUT /api/v1/vm.create HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b'Content-Length: 14\r\n\r\n{"payload":{}}',
        b"PUT /api/v1/vmm.shutdown HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
    ]


async def test_cancelled_anywhere(tmp_path: Path) -> None:
    """A call that is cancelled leaves no connection, and no half-run generator, which would be a warning."""
    step, cancelled = 1, True
    before = descriptors()
    while cancelled:
        async with answering(tmp_path / f"s{step}", response(PING)) as api:
            cancelled = await cancelled_at(step, api.ping)
        step += 1
    assert step > 5
    assert descriptors() == before
