"""``exec``: one more process in a worker's sandbox, its streams relayed to a control client."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from iii_core.errors import LinkError, UsageError
from iii_core.link.mux import Closed, Data, Eof
from iii_core.sandbox.agent import ProcessSpec, TerminalSize

if TYPE_CHECKING:
    from iii_core.link.mux import MuxStream
    from iii_core.sandbox.agent import Agent, AgentProcess
    from iii_core.workers.plan import WorkerPlan

DEFAULT_DIRECTORY: Final = "/workspace"
STDIN: Final = 0
MESSAGE_BACKLOG: Final = 256


class Terminal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A terminal's size in characters."""

    rows: int
    cols: int


class ExecRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments of ``worker.exec``; ``env`` is added to the worker's own environment."""

    name: str
    argv: list[str]
    env: dict[str, str] = {}
    cwd: str | None = None
    tty: Terminal | None = None


class _Order(msgspec.Struct, frozen=True):
    signal: int | None = None
    resize: tuple[int, int] | None = None


async def exec_in_worker(request: ExecRequest, agent: Agent, plan: WorkerPlan, stream: MuxStream) -> dict[str, Any]:
    """Run a program beside the worker and relay until it ends.

    The client's leaving kills it. Returns ``{"exit_code": n}`` as a shell would report it (128+n for signals).

    Raises:
        ProcessSpawnError: no such program or directory.
        LinkClosed: the worker's sandbox ended meanwhile, or the client left.
    """
    if not request.argv:
        raise UsageError("no command given", hint="iii worker exec NAME -- COMMAND [ARG…]")
    process = await agent.spawn(
        ProcessSpec(
            argv=tuple(request.argv),
            env={**plan.env, **request.env},
            cwd=request.cwd or DEFAULT_DIRECTORY,
            tty=TerminalSize(rows=request.tty.rows, cols=request.tty.cols) if request.tty else None,
            uid=plan.uid,
            gid=plan.gid,
            groups=plan.groups,
            stdin=True,
        )
    )
    return await relay(stream, process)


async def relay(stream: MuxStream, process: AgentProcess) -> dict[str, Any]:
    """Be a client's hands on a process until that ends; the client's leaving kills it. Returns as `exec_in_worker`."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_client_to_guest, stream, process)
            nursery.start_soon(Orders(stream).obey, process)
            while (output := await process.receive_output()) is not None:
                await stream.send_data(*output)
            status = await process.wait()
            nursery.cancel_scope.cancel()
        return {"exit_code": status.as_shell()}
    finally:
        with trio.move_on_after(2, shield=True):
            await process.kill()


async def _client_to_guest(stream: MuxStream, process: AgentProcess) -> None:
    while True:
        match await stream.receive():
            case Data(channel=channel, data=data) if channel == STDIN:
                await process.send_stdin(data)
            case Eof(channel=channel) if channel == STDIN:
                await process.close_stdin()
            case Closed():
                await process.kill()
                return
            case _:
                pass  # additive: newer clients may send what this engine does not know


class Orders:
    """What the client asks for, apart from the stream's data: a full stdin must not hold up a signal.

    Of sizes only the last one counts: a window that is being dragged asks for thousands.
    """

    def __init__(self, stream: MuxStream) -> None:
        self._waiting: deque[_Order | UsageError] = deque()
        self._resize: tuple[int, int] | None = None
        self._news = trio.Event()
        stream.divert_messages(self._take)

    def _take(self, payload: bytes) -> None:
        order = _decoded(payload)
        if isinstance(order, _Order) and order.resize is not None:
            self._resize = order.resize
        if not isinstance(order, _Order) or order.signal is not None:
            if len(self._waiting) >= MESSAGE_BACKLOG:
                raise LinkError("too many messages for an exec session")
            self._waiting.append(order)
        self._news.set()

    async def obey(self, process: AgentProcess) -> None:
        """Do what comes, until cancelled. Raises `UsageError` for what nobody can mean."""
        while True:
            await self._news.wait()
            self._news = trio.Event()
            while self._waiting:
                order = self._waiting.popleft()
                if not isinstance(order, _Order):
                    raise order
                if order.signal is not None:
                    await process.signal(order.signal)
            if self._resize is not None:
                (rows, cols), self._resize = self._resize, None
                await process.resize(TerminalSize(rows=rows, cols=cols))


def _decoded(payload: bytes) -> _Order | UsageError:
    try:
        return msgspec.json.decode(payload, type=_Order)
    except (msgspec.DecodeError, RecursionError) as error:
        return UsageError(f"malformed exec message: {error}")
