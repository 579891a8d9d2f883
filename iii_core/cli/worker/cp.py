"""``iii worker cp``: files between this machine and a worker's sandbox."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer

from iii_core.cli.output import say_error
from iii_core.cli.quick import QuickCommand
from iii_core.cli.state import state_of
from iii_core.errors import IIIError, InvalidName, UsageError
from iii_core.project.names import check_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iii_core.link.mux import MuxStream
    from iii_core.project.locate import Project
    from iii_core.sandbox.archive import Unpacker

EXAMPLES: Final = """\b
Examples:
  iii worker cp my-worker:/workspace/report.csv .
  iii worker cp ./data my-worker:/workspace
"""
_HINT: Final = "iii worker cp NAME:PATH TARGET, or: iii worker cp SOURCE NAME:PATH"
INPUT, ARCHIVE, COMPLAINTS = 0, 1, 2

app = typer.Typer(rich_markup_mode=None, add_completion=False)


class Inside(NamedTuple):
    """A path in a worker's sandbox."""

    worker: str
    path: str


@app.command("cp", cls=QuickCommand, epilog=EXAMPLES)
def copy(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A file or folder: PATH, or NAME:PATH.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Where to: NAME:PATH, or PATH.")],
) -> None:
    """Copy files or folders into the sandbox of a running worker, or out of it.

    A target that is a folder gets a copy in it, any other is the copy's name. NAME:PATH is a path inside, absolute or
    below /workspace; write ./a:b for a file of this machine with a colon.
    """
    came, goes = parse_side(source), parse_side(target)
    if isinstance(came, Inside) == isinstance(goes, Inside):
        raise UsageError("one of SOURCE and TARGET must be in a worker", hint=_HINT)

    from iii_core.cli.running import run_async
    from iii_core.control.client import engine_gone
    from iii_core.errors import LinkError

    project = state_of(context).project
    try:
        if isinstance(came, Inside):
            code = run_async(partial(_copy_out, project, came, _check_target(Path(target))))
        else:
            assert isinstance(goes, Inside)
            code = run_async(partial(_copy_in, project, _check_source(came), goes))
    except LinkError as error:
        raise engine_gone() from error
    except OSError as error:
        raise IIIError(f"cannot copy: {error.strerror}: {error.filename}" if error.filename else str(error)) from error
    raise typer.Exit(code)


def parse_side(text: str) -> Inside | Path:
    """``NAME:PATH`` is inside, anything else on this machine. Raises `UsageError` for ``NAME:``."""
    name, colon, path = text.partition(":")
    if not colon or "/" in name or name in ("", ".", ".."):
        return Path(text)
    try:
        check_name(name)
    except InvalidName:
        return Path(text)
    if not path:
        raise UsageError(f"{text!r} names no path in the worker", hint=_HINT)
    return Inside(name, path)


def _check_target(target: Path) -> Path:
    if not target.is_dir() and not target.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {target.absolute().parent}")
    return target


def _check_source(source: Path) -> Path:
    if not source.exists():
        raise UsageError(f"there is no {source}")
    return source


async def _copy_out(project: Project, source: Inside, target: Path) -> int:
    import trio

    from iii_core.control.client import open_stream
    from iii_core.sandbox.archive import Unpacker

    unpacker = Unpacker(target)
    try:
        async with open_stream(project, "worker.copy", _arguments(source, "out")) as stream:
            code = await _until_result(stream, unpacker)
        if code == 0:
            unpacker.finish()
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(unpacker.close)
    for line in unpacker.skipped:
        say_error(f"left out: {line}")
    return code or (1 if unpacker.skipped else 0)


async def _copy_in(project: Project, source: Path, target: Inside) -> int:
    import trio

    from iii_core.control.client import open_stream
    from iii_core.sandbox.archive import pack

    async with (
        open_stream(project, "worker.copy", _arguments(target, "in")) as stream,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(_send, stream, pack(source))
        code = await _until_result(stream, None)
        nursery.cancel_scope.cancel()
    return code


async def _send(stream: MuxStream, archive: Iterator[bytes]) -> None:
    import trio

    from iii_core.errors import LinkError

    def following() -> bytes | None:
        return next(archive, None)

    try:
        while (piece := await trio.to_thread.run_sync(following)) is not None:
            await stream.send_data(INPUT, piece)
        await stream.send_eof(INPUT)
    except LinkError:
        pass  # whoever reads the stream learns why


async def _until_result(stream: MuxStream, unpacker: Unpacker | None) -> int:
    """Unpack what comes, say what the sandbox complains of, and give the exit code."""
    import trio

    from iii_core.control.client import decode, engine_gone, result_of
    from iii_core.link.mux import Closed, Data, Message

    complaints = bytearray()
    while True:
        match await stream.receive():
            case Data(channel=channel, data=data) if channel == ARCHIVE and unpacker is not None:
                await trio.to_thread.run_sync(unpacker.feed, data)
            case Data(channel=channel, data=data) if channel == COMPLAINTS:
                complaints += data[: 64 * 1024 - len(complaints)]
            case Message(payload=payload) if (message := decode(payload)).keys() & {"result", "error"}:
                result: dict[str, Any] = result_of(message)
                for line in complaints.decode(errors="replace").splitlines():
                    say_error("".join(char if char.isprintable() else "?" for char in line))
                return int(result["exit_code"])
            case Closed():
                raise engine_gone()
            case _:
                pass  # additive: a newer engine may send what this program does not know


def _arguments(inside: Inside, direction: str) -> dict[str, Any]:
    return {"name": inside.worker, "path": inside.path, "direction": direction}
