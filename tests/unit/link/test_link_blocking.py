"""The client without trio, against a real acceptor in another thread."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

import pytest
import trio

from iii_core.errors import LinkClosed, LinkError
from iii_core.link import frames
from iii_core.link.blocking import converse
from iii_core.link.frames import Hello
from iii_core.link.limits import LinkLimits
from iii_core.link.mux import Closed, MuxStream, Role, open_mux


@contextmanager
def acceptor(serve: Callable[[bytes, MuxStream], object]) -> Generator[socket.socket]:
    """The client's end of a connection whose one stream ``serve`` (async) handles."""
    ours, theirs = socket.socketpair()

    async def main() -> None:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
        limits = LinkLimits(ping_interval=0.01)
        async with open_mux(stream, role=Role.ACCEPTOR, limits=limits) as mux:
            async for payload, opened in mux.incoming:
                with suppress(LinkClosed):  # the client may leave
                    await serve(payload, opened)  # type: ignore[misc]

    thread = threading.Thread(target=trio.run, args=[main])
    thread.start()
    try:
        with ours:
            yield ours
    finally:
        thread.join(10)
        assert not thread.is_alive()


def test_messages_until_the_stream_is_closed() -> None:
    async def serve(payload: bytes, stream: MuxStream) -> None:
        for number in range(200):  # many times the window of 64 KiB
            await stream.send_message(json.dumps({"echo": payload.decode(), "number": number}).encode() + b" " * 2000)
        await stream.send_message(b" " * 300_000 + b"{}")
        await stream.close()

    with acceptor(serve) as connection:
        messages = [json.loads(payload) for payload in converse(connection, b"hello", timeout=30)]
    assert messages[:2] == [{"echo": "hello", "number": 0}, {"echo": "hello", "number": 1}]
    assert len(messages) == 201


def test_leaving_early_is_noticed_by_the_peer() -> None:
    left = threading.Event()

    async def serve(_: bytes, stream: MuxStream) -> None:
        await stream.send_message(b"1")
        try:
            while not isinstance(await stream.receive(), Closed):
                pass
        except LinkClosed:
            left.set()

    with acceptor(serve) as connection:
        for _ in converse(connection, b""):
            break
        connection.close()
        assert left.wait(30)


def test_a_peer_that_is_slow_is_given_up() -> None:
    async def serve(_: bytes, stream: MuxStream) -> None:
        while not isinstance(await stream.receive(), Closed):
            pass

    with acceptor(serve) as connection:
        with pytest.raises(LinkClosed, match="did not answer in time"):
            list(converse(connection, b"", timeout=0.05))
        connection.close()


def scripted(*answers: bytes, request: bytes = b"x") -> list[bytes]:
    """What a conversation gives whose peer answers HELLO and then says this, whatever it hears."""
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def answer() -> None:
            hello = theirs.recv(65536)
            epoch = frames.decode_epochs(hello[frames.HEADER :])[0]
            mine = Hello(
                epoch=1, peer_epoch=epoch, max_message=2000, max_streams=1, data_window=1 << 15, message_window=1024
            )
            theirs.sendall(mine.encode() + b"".join(answers))
            theirs.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            return list(converse(ours, request, timeout=30))
        finally:
            thread.join()


MESSAGE = frames.encode_frame(frames.MESSAGE, 1, b"m")
CLOSE = frames.encode_close(1, "")


def test_what_a_peer_may_say() -> None:
    assert (
        scripted(MESSAGE, frames.encode_token(frames.PING, 5), frames.encode_credit(1, 1, 1), MESSAGE, CLOSE)
        == [b"m"] * 2
    )


@pytest.mark.parametrize(
    "answer",
    [
        frames.encode_frame(frames.MESSAGE, 2, b"m"),
        frames.encode_data(1, 0, b"x"),
        frames.encode_frame(frames.OPEN, 1, b""),
        bytes(9),
    ],
)
def test_what_it_may_not(answer: bytes) -> None:
    with pytest.raises(LinkError) as caught:
        scripted(MESSAGE, answer)
    assert type(caught.value) is LinkError


def test_an_early_end() -> None:
    with pytest.raises(LinkClosed):
        scripted(MESSAGE)


def test_a_request_too_long_for_the_peer() -> None:
    with pytest.raises(LinkError, match="2001 bytes is too long"):
        scripted(request=bytes(2001))


def test_it_does_not_import_trio() -> None:
    program = "import sys, iii_core.link.blocking; sys.exit('trio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
