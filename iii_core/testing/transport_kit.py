"""Conformance kit for transports: what every `MessageTransport` must do, as plain async functions.

The kit needs no test framework; each check raises ``AssertionError`` (or the transport's own error) and takes a few
hundred milliseconds at most. With pytest and anyio's plugin::

    from iii_core.testing import transport_kit

    @pytest.mark.parametrize("check", transport_kit.CHECKS, ids=lambda check: check.__name__)
    async def test_conformance(check):
        await check(transport_kit.TransportUnderTest(open=my_open, url=lambda a, target: f"ws://{a.host}:{a.port}{target}"))

`STREAM_CHECKS` is for transports whose ``serve_stream`` takes a byte stream that carries what ``connect`` speaks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeAlias

import trio
import trio.testing

from iii_core.errors import AddressInUse, EngineError, EngineNotRunning
from iii_core.testing.transport_harness import (
    LIMITS,
    PATIENCE,
    TransportUnderTest,
    expect_broken,
    expect_end,
    expect_error,
    open_harness,
    open_relay,
    text,
)
from iii_core.transport.port import ConnectionRequest, Listener, Message, Peer, Rejection

Check: TypeAlias = Callable[[TransportUnderTest], Awaitable[None]]


async def check_started_gives_the_bound_address(under_test: TransportUnderTest) -> None:
    """``started`` comes when clients can connect, with the real port."""
    async with open_harness(under_test) as harness:
        assert harness.bound.port > 0
        client, served = await harness.pair()
        await client.send(text("hello"))
        assert await served.peer.receive() == text("hello")


async def check_address_in_use(under_test: TransportUnderTest) -> None:
    """A taken address is `AddressInUse` with a hint, and the first listener goes on."""
    async with open_harness(under_test) as harness:
        listener = Listener(admit=lambda _: None, serve=_ignore, limits=LIMITS)
        error = await expect_error(AddressInUse, lambda: harness.transport.listen(harness.bound, listener))
        assert error.hint
        await harness.pair()


async def check_nobody_listens(under_test: TransportUnderTest) -> None:
    """Dialling where nothing listens is an error of the documented kind, soon."""
    async with open_harness(under_test) as harness:
        harness.listening.cancel()
        await trio.testing.wait_all_tasks_blocked()
        try:
            await harness.dial()
        except (OSError, EngineNotRunning):
            return
        raise AssertionError("connect must fail where nothing listens")


async def check_text_and_binary(under_test: TransportUnderTest) -> None:
    """Kind and content of messages survive in both directions, empty ones too."""
    messages = [
        text(""),
        Message(data=b"", text=False),
        text("grüße \N{GRINNING FACE} \x00"),
        Message(data=bytes(range(256)), text=False),
        text("x" * 70_000),
    ]
    async with open_harness(under_test) as harness:
        client, served = await harness.pair()
        for sender, receiver in ((client, served.peer), (served.peer, client)):
            for message in messages:
                await sender.send(message)
                assert await receiver.receive() == message


async def check_order(under_test: TransportUnderTest) -> None:
    """Messages arrive in order while both sides send at once."""
    count = 500
    async with open_harness(under_test) as harness:
        client, served = await harness.pair()

        async def send(peer: Peer) -> None:
            for number in range(count):
                await peer.send(text(str(number)))

        async def receive(peer: Peer) -> None:
            for number in range(count):
                assert await peer.receive() == text(str(number))

        async with trio.open_nursery() as nursery:
            for peer in (client, served.peer):
                nursery.start_soon(send, peer)
                nursery.start_soon(receive, peer)


async def check_request(under_test: TransportUnderTest) -> None:
    """Path, query and headers reach ``admit`` and the peer."""
    async with open_harness(under_test) as harness:
        target = harness.url("/ws/channels/abc?key=a%20b&dir=read")
        await harness.transport.connect(target, headers={"X-Probe": "1"}, limits=LIMITS)
        served = await harness.served.receive()
        (request,) = harness.requests
        assert request.path == "/ws/channels/abc"
        assert request.query == "key=a%20b&dir=read"
        assert request.header("x-probe") == "1"
        assert all(name == name.lower() for name, _ in request.headers)
        assert request.sandbox is None
        assert served.peer.request == request


async def check_rejection(under_test: TransportUnderTest) -> None:
    """A refused client learns the status, ``serve`` never hears of it, and others still get in."""

    def admit(request: ConnectionRequest) -> Rejection | None:
        return Rejection(status=403, body="not for you") if request.path == "/no" else None

    async with open_harness(under_test, admit=admit) as harness:
        error = await expect_error(EngineError, lambda: harness.dial("/no"))
        assert "403" in str(error)
        await harness.pair("/yes")
        assert [request.path for request in harness.requests] == ["/no", "/yes"]


async def check_message_at_the_limit(under_test: TransportUnderTest) -> None:
    """``max_message`` bytes are taken, in text that has several bytes per character too."""
    size = LIMITS.max_message
    async with open_harness(under_test) as harness:
        client, served = await harness.pair()
        for message in (text("é" * (size // 2)), Message(data=bytes(size), text=False)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send, message)
                assert await served.peer.receive() == message


async def check_message_over_the_limit(under_test: TransportUnderTest) -> None:
    """One byte more ends the connection: the receiver never sees the message, the sender sees a broken connection."""
    size = LIMITS.max_message
    for message in (text("é" * (size // 2) + "x"), Message(data=bytes(size + 1), text=False)):
        async with open_harness(under_test) as harness:
            client, served = await harness.pair()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_send_unless_broken, client, message)
                await expect_broken(served.peer.receive)
            await expect_broken(client.receive)


async def check_close_by_client(under_test: TransportUnderTest) -> None:
    """A clean close ends the other side after what was sent before; later sends break; closing twice is harmless."""
    async with open_harness(under_test) as harness:
        client, served = await harness.pair()
        await client.send(text("last"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.close)
            assert await served.peer.receive() == text("last")
            await expect_end(served.peer)
        await client.close()
        await expect_broken(lambda: client.send(text("late")))
        await expect_broken(lambda: served.peer.send(text("late")))
        await served.peer.close()


async def check_close_by_server(under_test: TransportUnderTest) -> None:
    """As by the client."""
    async with open_harness(under_test) as harness:
        client, served = await harness.pair()
        await served.peer.send(text("last"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.peer.close, 1008, "enough")
            assert await client.receive() == text("last")
            await expect_end(client)
        await served.peer.close()
        await expect_broken(lambda: served.peer.send(text("late")))


async def check_close_is_bounded(under_test: TransportUnderTest) -> None:
    """A peer that answers no close does not hold ``close`` up."""
    async with open_harness(under_test) as harness:
        client, served = await harness.pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_flood, served.peer)  # fills what the client does not read
            await trio.testing.wait_all_tasks_blocked(0.05)
            with trio.fail_after(LIMITS.close_timeout + PATIENCE / 2):
                await served.peer.close()
        client.abort()


async def check_abort(under_test: TransportUnderTest) -> None:
    """After ``abort`` both ends are broken, not cleanly closed, and what was queued for the aborter is void."""
    async with open_harness(under_test) as harness:
        for aborter_is_client in (True, False):
            client, served = await harness.pair()
            ends = (client, served.peer) if aborter_is_client else (served.peer, client)
            await ends[1].send(text("never taken"))
            ends[0].abort()
            ends[0].abort()
            await expect_broken(ends[0].receive)
            await expect_broken(lambda peer=ends[0]: peer.send(text("late")))  # type: ignore[misc]
            await expect_broken(ends[1].receive)


async def check_abort_wakes_everyone(under_test: TransportUnderTest) -> None:
    """A blocked ``send`` and a blocked ``receive`` of the aborted peer raise, and the other side breaks as well."""
    async with open_harness(under_test) as harness:
        client, served = await harness.pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_flood, served.peer)
            nursery.start_soon(expect_broken, served.peer.receive)
            await trio.testing.wait_all_tasks_blocked(0.05)
            served.peer.abort()
        await expect_broken(lambda: _drain(client))


async def check_backpressure(under_test: TransportUnderTest) -> None:
    """A peer that is not read stops its sender after a bounded amount, and nothing is lost or reordered."""
    block, sent = 64 * 1024, 0
    async with open_harness(under_test) as harness:
        client, served = await harness.pair()

        async def send() -> None:
            nonlocal sent
            for number in range(1024):
                await client.send(Message(data=number.to_bytes(4, "big") * (block // 4), text=False))
                sent += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            before = -1
            while before != sent:
                before = sent
                await trio.sleep(0.2)
            assert sent * block < 32 * 1024 * 1024, f"{sent * block} bytes are buffered for a peer that reads nothing"
            for number in range(sent + 5):
                message = await served.peer.receive()
                assert message.data[:4] == number.to_bytes(4, "big")
            nursery.cancel_scope.cancel()


async def check_cancelled_receive(under_test: TransportUnderTest) -> None:
    """A cancelled ``receive`` loses nothing."""
    async with open_harness(under_test) as harness:
        client, served = await harness.pair()
        with trio.move_on_after(0.02):
            await served.peer.receive()
        await client.send(text("still here"))
        assert await served.peer.receive() == text("still here")


async def check_cancelled_send(under_test: TransportUnderTest) -> None:
    """After a ``send`` that was cancelled half-way, the receiver never sees a wrong message and ``abort`` works."""
    async with open_harness(under_test) as harness:
        client, served = await harness.pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_flood, client)
            assert (await served.peer.receive()).data == _BLOCK
            await trio.testing.wait_all_tasks_blocked(0.05)  # nobody takes more, so it is half-way
            nursery.cancel_scope.cancel()
        with trio.move_on_after(0.2):
            await _send_unless_broken(client, text("y"))
        client.abort()
        with suppress(trio.BrokenResourceError):
            while True:
                message = await served.peer.receive()
                assert message.data in (_BLOCK, b"y")


async def check_serve_returns(under_test: TransportUnderTest) -> None:
    """When ``serve`` returns with the connection open, it is dropped."""
    async with open_harness(under_test) as harness:
        client, served = await harness.pair()
        served.finish.set()
        await expect_broken(client.receive)


async def check_cancelled_listener(under_test: TransportUnderTest) -> None:
    """Cancelling ``listen`` cancels every ``serve`` and drops every connection without a closing handshake."""
    async with open_harness(under_test) as harness:
        pairs = [await harness.pair() for _ in range(5)]
        harness.listening.cancel()
        for client, served in pairs:
            await expect_broken(client.receive)
            await served.cancelled.wait()


async def check_independent_connections(under_test: TransportUnderTest) -> None:
    """A connection that is not read holds no other one up."""
    async with open_harness(under_test) as harness:
        stuck, _ = await harness.pair()
        pairs = [await harness.pair() for _ in range(20)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_flood, stuck)
            await trio.testing.wait_all_tasks_blocked(0.05)
            for client, served in pairs:
                await client.send(text("ping"))
                await served.peer.send(await served.peer.receive())
                assert await client.receive() == text("ping")
            stuck.abort()


async def check_transport_exit(under_test: TransportUnderTest) -> None:
    """Closing the transport drops the connections that it dialled."""
    async with open_harness(under_test) as harness:
        async with under_test.open() as dialler:
            client = await dialler.connect(harness.url("/"), limits=LIMITS)
            served = await harness.served.receive()
        await expect_broken(served.peer.receive)
        await expect_broken(client.receive)


async def check_served_stream(under_test: TransportUnderTest) -> None:
    """``serve_stream`` serves one connection over a byte stream that is no socket, says whence it comes, and ends."""
    async with open_relay(under_test, sandbox="box") as relay:
        client = await relay.dial("/tunnelled")
        served = await relay.served.receive()
        assert (served.peer.request.sandbox, served.peer.request.remote) == ("box", None)
        await client.send(text("in"))
        assert await served.peer.receive() == text("in")
        await served.peer.send(text("out"))
        assert await client.receive() == text("out")
        await client.close()
        await expect_end(served.peer)
        served.finish.set()
        await relay.ended.wait()


async def check_served_stream_abort(under_test: TransportUnderTest) -> None:
    """``abort`` ends a connection over a byte stream, also while a ``send`` is blocked."""
    async with open_relay(under_test, sandbox="box") as relay:
        client = await relay.dial("/")
        served = await relay.served.receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_flood, served.peer)
            await trio.testing.wait_all_tasks_blocked(0.05)
            served.peer.abort()
        await expect_broken(served.peer.receive)
        served.finish.set()
        await relay.ended.wait()
        await expect_broken(lambda: _drain(client))


CHECKS: tuple[Check, ...] = (
    check_started_gives_the_bound_address,
    check_address_in_use,
    check_nobody_listens,
    check_text_and_binary,
    check_order,
    check_request,
    check_rejection,
    check_message_at_the_limit,
    check_message_over_the_limit,
    check_close_by_client,
    check_close_by_server,
    check_close_is_bounded,
    check_abort,
    check_abort_wakes_everyone,
    check_backpressure,
    check_cancelled_receive,
    check_cancelled_send,
    check_serve_returns,
    check_cancelled_listener,
    check_independent_connections,
    check_transport_exit,
)

STREAM_CHECKS: tuple[Check, ...] = (check_served_stream, check_served_stream_abort)

_BLOCK = bytes(128 * 1024)


async def _ignore(peer: Peer) -> None:
    del peer


async def _send_unless_broken(peer: Peer, message: Message) -> None:
    with suppress(trio.BrokenResourceError):
        await peer.send(message)


async def _flood(peer: Peer) -> None:
    """Send until the connection breaks."""
    with suppress(trio.BrokenResourceError):
        while True:
            await peer.send(Message(data=_BLOCK, text=False))


async def _drain(peer: Peer) -> None:
    while True:
        await peer.receive()
