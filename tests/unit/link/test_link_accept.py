"""Accepting within bounds: places are taken first, and a process never runs out of descriptors."""

from __future__ import annotations

import errno
import resource
import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from iii_core.link.accept import BACK_OFF, Acceptor, raise_descriptor_limit

LIMIT = 200


@contextmanager
def descriptors(soft: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@asynccontextmanager
async def accepting(
    *, slots: trio.Semaphore | None = None, spare: bool = True
) -> AsyncGenerator[tuple[int, list[trio.SocketStream]]]:
    """The port of a listener, and what is being served."""
    served: list[trio.SocketStream] = []

    async def serve(stream: trio.SocketStream) -> None:
        served.append(stream)
        try:
            await stream.receive_some()
        finally:
            served.remove(stream)

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Acceptor(listener, name="the door", slots=slots, spare=spare).run, serve, nursery)
        yield listener.socket.getsockname()[1], served
        nursery.cancel_scope.cancel()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def use_up_descriptors(files: ExitStack) -> None:
    try:
        while True:
            files.enter_context(Path("/dev/null").open())  # noqa: SIM115
    except OSError as error:
        assert error.errno == errno.EMFILE  # noqa: PT017


async def until(count: int, served: list[trio.SocketStream]) -> None:
    with trio.fail_after(20):
        while len(served) != count:  # noqa: ASYNC110 - tells when a client's connection has come
            await trio.sleep(0.01)


async def test_a_connection_without_a_place_is_not_accepted() -> None:
    with ExitStack() as clients:
        async with accepting(slots=trio.Semaphore(2)) as (port, served):
            first = clients.enter_context(socket.create_connection(("127.0.0.1", port)))
            await until(1, served)
            before = open_descriptors()
            for _ in range(20):
                clients.enter_context(socket.create_connection(("127.0.0.1", port)))
            await until(2, served)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert open_descriptors() == before + 20 + 1  # the clients' own, and one that is served
            oldest = served[0]
            first.close()
            with trio.fail_after(20):
                while len(served) != 2 or oldest in served:  # noqa: ASYNC110
                    await trio.sleep(0.01)


async def test_what_is_kept_for_the_program_is_not_given_away(caplog: pytest.LogCaptureFixture) -> None:
    with ExitStack() as clients, descriptors(LIMIT):
        async with accepting() as (port, served):
            highest = 0
            for _ in range(LIMIT):
                if highest >= LIMIT - 10:
                    break
                client = clients.enter_context(socket.create_connection(("127.0.0.1", port)))
                highest = client.fileno()
                await trio.testing.wait_all_tasks_blocked(0.001)
            kept = LIMIT * 3 // 4
            assert len(served) > 20
            assert max(stream.socket.fileno() for stream in served) < kept
            clients.close()
            await until(0, served)
            with socket.create_connection(("127.0.0.1", port)):
                await until(1, served)
    said = [record.getMessage() for record in caplog.records if record.name == "iii_core.link.accept"]
    assert said == [
        "the door: connections are turned away: what descriptors are left is for the program itself "
        f"(the limit is {LIMIT}; see 'ulimit -n')"
    ]


async def test_no_descriptor_at_all_is_one_line_and_another_try(caplog: pytest.LogCaptureFixture) -> None:
    async with accepting(spare=False) as (port, served):
        with ExitStack() as files, socket.create_connection(("127.0.0.1", port)) as first:
            await until(1, served)
            client = files.enter_context(socket.socket())
            with descriptors(LIMIT):
                use_up_descriptors(files)
                client.connect(("127.0.0.1", port))
                await trio.sleep(4 * BACK_OFF)
                assert len(served) == 1
            await until(2, served)
            assert first.fileno() >= 0
    said = [record for record in caplog.records if record.name == "iii_core.link.accept"]
    assert [record.exc_info for record in said] == [None]
    assert said[0].getMessage().startswith("the door: no connection can be accepted: Too many open files")


def test_the_soft_limit_becomes_the_hard_one() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with descriptors(hard // 2):
        raise_descriptor_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
