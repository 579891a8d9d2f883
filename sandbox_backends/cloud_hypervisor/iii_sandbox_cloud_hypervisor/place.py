"""The folder of one boot: its sockets, and the FIFO that takes its console."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from types import TracebackType

BACKLOG: Final = 16


@dataclass(slots=True)
class Pipe:
    """Both ends of a pipe, open within the block; the reading end is somebody else's once it is a `stream`."""

    reader: int
    writer: int

    @classmethod
    def make(cls) -> Pipe:
        """A pipe without a name."""
        return cls(*os.pipe2(os.O_CLOEXEC))  # the VMM gets an end that blocks

    @classmethod
    def named(cls, path: Path) -> Pipe:
        """A FIFO, at ``path``."""
        os.mkfifo(path, mode=0o600)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return cls(reader, os.open(path, os.O_WRONLY | os.O_CLOEXEC))
        except BaseException:
            os.close(reader)
            raise

    def stream(self) -> trio.lowlevel.FdStream:
        """What comes out."""
        stream = trio.lowlevel.FdStream(self.reader)
        self.reader = -1
        return stream

    def __enter__(self) -> Pipe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self.writer)
        if self.reader >= 0:
            os.close(self.reader)


class Place:
    """A private folder with a short name: paths of sockets have at most 107 bytes (unix(7)).

    A guest's call to port N of the host ends at the socket ``link_N`` here, and there is none.
    """

    def __init__(self, base: Path) -> None:
        self.folder: Final = Path(tempfile.mkdtemp(prefix="", dir=base))
        self.api: Final = self.folder / "api"
        self.link: Final = self.folder / "link"
        self.console: Final = self.folder / "console"

    def listen(self) -> socket.socket:
        """The API's socket, for the VMM to inherit: calls can be made before it has come up, and wait."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.bind(str(self.api))
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
        return listener

    def remove(self) -> None:
        """Undo it all. Idempotent."""
        shutil.rmtree(self.folder, ignore_errors=True)
