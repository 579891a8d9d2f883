"""``exec``: one more process in a worker's sandbox, its streams relayed to a control client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from iii_core.errors import UsageError
from iii_core.link.mux import Closed, Data, Eof, Message
from iii_core.sandbox.agent import ProcessSpec, TerminalSize

if TYPE_CHECKING:
    from iii_core.link.mux import MuxStream
    from iii_core.sandbox.agent import Agent, AgentProcess
    from iii_core.workers.plan import WorkerPlan

DEFAULT_DIRECTORY: Final = "/workspace"
STDIN: Final = 0


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


class _Signal(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field=None):
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
            stdin=True,
        )
    )
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_client_to_guest, stream, process)
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
            case Message(payload=payload):
                await _control(payload, process)
            case Closed():
                await process.kill()
                return
            case _:
                pass  # additive: newer clients may send what this engine does not know


async def _control(payload: bytes, process: AgentProcess) -> None:
    try:
        message = msgspec.json.decode(payload, type=_Signal)
    except msgspec.DecodeError as error:
        raise UsageError(f"malformed exec message: {error}") from error
    if message.signal is not None:
        await process.signal(message.signal)
    if message.resize is not None:
        await process.resize(TerminalSize(rows=message.resize[0], cols=message.resize[1]))
