"""``iii worker cp``: files between this machine and a worker's sandbox."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer

from iii_core.cli.output import say_error
from iii_core.cli.quick import QuickCommand
from iii_core.cli.state import state_of
from iii_core.errors import InvalidName, InvalidValue, OutputError, UsageError
from iii_core.project.files import hint_for
from iii_core.project.names import check_name

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from iii_core.link.mux import MuxStream
    from iii_core.project.locate import Project

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


@contextmanager
def _reading(source: Path) -> Generator[None]:
    """What cannot be read in the block is an `InvalidValue`."""
    try:
        yield
    except OSError as error:
        raise InvalidValue(f"cannot copy {source}: {_reason(error)}") from error


@contextmanager
def _writing(target: Path) -> Generator[None]:
    """What cannot be written in the block is an `OutputError`."""
    try:
        yield
    except OSError as error:
        hint = hint_for(error)
        if isinstance(error, (FileExistsError, NotADirectoryError)) or error.errno == errno.ELOOP:
            hint = "what is in the way is no folder (links are not followed): remove it, or copy to another target"
        raise OutputError(f"cannot copy to {target}: {_reason(error)}", hint=hint) from error


def _reason(error: OSError) -> str:
    return f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror or error)


async def _copy_out(project: Project, source: Inside, target: Path) -> int:
    import trio

    from iii_core.control.client import open_stream
    from iii_core.sandbox.archive import Unpacker

    with _writing(target):
        unpacker = Unpacker(target)

    def unpack(data: bytes) -> None:
        with _writing(target):
            unpacker.feed(data)

    try:
        async with open_stream(project, "worker.copy", _arguments(source, "out")) as stream:
            code = await _until_result(stream, source.worker, unpack)
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
        nursery.start_soon(_send, stream, source, pack(source))
        code = await _until_result(stream, target.worker, None)
        nursery.cancel_scope.cancel()
    return code


async def _send(stream: MuxStream, source: Path, archive: Iterator[bytes]) -> None:
    import trio

    from iii_core.errors import LinkError

    def following() -> bytes | None:
        with _reading(source):
            return next(archive, None)

    try:
        while (piece := await trio.to_thread.run_sync(following)) is not None:
            await stream.send_data(INPUT, piece)
        await stream.send_eof(INPUT)
    except LinkError:
        pass  # whoever reads the stream learns why


async def _until_result(stream: MuxStream, worker: str, unpack: Callable[[bytes], None] | None) -> int:
    """Unpack what comes, say what the sandbox complains of, and give the exit code."""
    import trio

    from iii_core.control.client import decode, engine_gone, result_of
    from iii_core.link.mux import Closed, Data, Message

    complaints = bytearray()
    while True:
        match await stream.receive():
            case Data(channel=channel, data=data) if channel == ARCHIVE and unpack is not None:
                await trio.to_thread.run_sync(unpack, data)
            case Data(channel=channel, data=data) if channel == COMPLAINTS:
                complaints += data[: 64 * 1024 - len(complaints)]
            case Message(payload=payload) if (message := decode(payload)).keys() & {"result", "error"}:
                result: dict[str, Any] = result_of(message)
                for line in complaints.decode(errors="replace").splitlines():
                    said = "".join(char if char.isprintable() else "?" for char in line)
                    say_error(f"in {worker}: {said}")
                return int(result["exit_code"])
            case Closed():
                raise engine_gone()
            case _:
                pass  # additive: a newer engine may send what this program does not know


def _arguments(inside: Inside, direction: str) -> dict[str, Any]:
    return {"name": inside.worker, "path": inside.path, "direction": direction}
