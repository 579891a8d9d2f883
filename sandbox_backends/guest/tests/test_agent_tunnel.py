"""Connections out of the sandbox, through the real agent."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from iii_core.errors import BootFailed

from .agentkit import StartAgent, run, spec


async def echo(stream: trio.abc.Stream) -> None:
    assert isinstance(stream, trio.abc.HalfCloseableStream)
    async for data in stream:
        await stream.send_all(data)
    await stream.send_eof()


@asynccontextmanager
async def connected(port: int, host: str = "127.0.0.1") -> AsyncGenerator[trio.SocketStream]:
    with trio.fail_after(40):
        async with await trio.open_tcp_stream(host, port) as stream:
            yield stream


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([data async for data in stream])


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_both_addresses_lead_to_the_engine(
    start_agent: StartAgent, host: str, free_port: Callable[[], int]
) -> None:
    if host == "::1" and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    ports = [free_port(), free_port()]
    async with start_agent(tunnel_ports=ports, serve_tunnel=echo):
        for port in ports:
            async with connected(port, host) as stream:
                await stream.send_all(b"hello")
                await stream.send_eof()
                assert await read_all(stream) == b"hello"


async def test_the_server_knows_the_port(start_agent: StartAgent, free_port: Callable[[], int]) -> None:
    async def tell(stream: trio.abc.Stream) -> None:
        await stream.send_all(str(getattr(stream, "port", None)).encode())

    port = free_port()
    async with start_agent(tunnel_ports=[port], serve_tunnel=tell), connected(port) as stream:
        assert await read_all(stream) == str(port).encode()


async def test_half_close_by_the_engine_first(start_agent: StartAgent, free_port: Callable[[], int]) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        assert isinstance(stream, trio.abc.HalfCloseableStream)
        await stream.send_all(b"all I say")
        await stream.send_eof()
        received.append(await read_all(stream))
        done.set()

    received: list[bytes] = []
    done = trio.Event()
    port = free_port()
    async with start_agent(tunnel_ports=[port], serve_tunnel=serve):
        async with connected(port) as stream:
            assert await read_all(stream) == b"all I say"
            await stream.send_all(b"still heard")
        await done.wait()
    assert received == [b"still heard"]


async def test_what_was_sent_before_closing_arrives(start_agent: StartAgent, free_port: Callable[[], int]) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await stream.send_all(bytes(3_000_000))

    port = free_port()
    async with start_agent(tunnel_ports=[port], serve_tunnel=serve), connected(port) as stream:
        await trio.sleep(0.1)
        assert len(await read_all(stream)) == 3_000_000


async def test_a_broken_connection_breaks_the_tunnel(start_agent: StartAgent, free_port: Callable[[], int]) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        accepted.set()
        try:
            await stream.receive_some()
            await stream.send_all(bytes(10 << 20))
        except trio.BrokenResourceError:
            broken.set()
            raise

    accepted, broken = trio.Event(), trio.Event()
    port = free_port()
    async with start_agent(tunnel_ports=[port], serve_tunnel=serve):
        async with connected(port) as stream:
            await accepted.wait()
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close by RST
        with trio.fail_after(30):
            await broken.wait()


async def test_a_server_that_fails_to_care_closes_the_connection(
    start_agent: StartAgent, free_port: Callable[[], int]
) -> None:
    async def leave(_: trio.abc.Stream) -> None:
        return

    port = free_port()
    async with start_agent(tunnel_ports=[port], serve_tunnel=leave):
        for _ in range(300):
            async with connected(port) as stream:
                assert await read_all(stream) == b""


async def test_many_connections_at_once(start_agent: StartAgent, free_port: Callable[[], int]) -> None:
    async def talk(number: int) -> None:
        data = bytes([number % 251]) * 50_000
        async with connected(port) as stream, trio.open_nursery() as nursery:

            async def send() -> None:
                await stream.send_all(data)
                await stream.send_eof()

            nursery.start_soon(send)
            assert await read_all(stream) == data

    port = free_port()
    async with start_agent(tunnel_ports=[port], serve_tunnel=echo), trio.open_nursery() as nursery:
        for number in range(400):  # more than there are streams
            nursery.start_soon(talk, number)


async def test_a_tunnel_nobody_reads_stalls_no_other(start_agent: StartAgent, free_port: Callable[[], int]) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        if await stream.receive_some(1) == b"s":
            await trio.sleep_forever()
        await stream.send_all(b"served")

    port = free_port()
    async with start_agent(tunnel_ports=[port], serve_tunnel=serve) as agent, AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        unread = [await agent.spawn(spec("yes")) for _ in range(8)]
        stalled = await stack.enter_async_context(connected(port))
        nursery.start_soon(stalled.send_all, b"s" * (50 << 20))
        await trio.sleep(0.1)
        for _ in range(20):
            async with connected(port) as stream:
                await stream.send_all(b"x")
                assert await read_all(stream) == b"served"
        assert (await run(agent, "echo", "exec goes on"))[0] == b"exec goes on\n"
        for process in unread:
            await process.kill()
        nursery.cancel_scope.cancel()


async def test_ten_mebibytes_both_ways_are_byte_exact(start_agent: StartAgent, free_port: Callable[[], int]) -> None:
    data = bytes(range(251)) * 40_000
    port = free_port()
    async with (
        start_agent(tunnel_ports=[port], serve_tunnel=echo),
        connected(port) as stream,
        trio.open_nursery() as nursery,
    ):

        async def send() -> None:
            await stream.send_all(data)
            await stream.send_eof()

        nursery.start_soon(send)
        assert await read_all(stream) == data


async def test_a_port_that_is_taken_is_named(start_agent: StartAgent) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(BootFailed, match=f"127.0.0.1:{port}: Address already in use"):
            async with start_agent(tunnel_ports=[port]):
                pass


async def test_an_error_of_the_server_is_not_swallowed(start_agent: StartAgent, free_port: Callable[[], int]) -> None:
    async def fail(_: trio.abc.Stream) -> None:
        raise ZeroDivisionError

    async def connect() -> None:
        async with start_agent(tunnel_ports=[port], serve_tunnel=fail), connected(port):
            await trio.sleep_forever()

    port = free_port()
    with pytest.raises(ZeroDivisionError):
        await connect()
