"""Connecting to a port of the guest through the VMM's Unix socket ("hybrid vsock").

The host writes ``CONNECT <port>\\n`` and the VMM answers ``OK <its port>\\n`` once the guest has accepted; if nobody in
the guest listens, it hangs up (``docs/vsock.md`` of Cloud Hypervisor; Firecracker's is the same).
"""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING, Final

import trio

from iii_core.sandbox.launcher import LaunchFailed

if TYPE_CHECKING:
    from pathlib import Path

_ANSWER: Final = re.compile(rb"OK [0-9]{1,10}\n")
_MAX_ANSWER: Final = 32


async def connect(path: Path, port: int, *, longest_pause: float) -> socket.socket:
    """The connected, non-blocking stream to the guest's ``port``; tries until somebody listens there.

    Nothing tells when that is, so the pauses between tries double, up to ``longest_pause`` seconds. Not bounded.
    Raises `LaunchFailed` if the VMM answers something else than the protocol has.
    """
    pause = longest_pause / 10
    while True:
        link = await _try(path, port)
        if link is not None:
            return link
        await trio.sleep(pause)
        pause = min(2 * pause, longest_pause)


async def _try(path: Path, port: int) -> socket.socket | None:
    link = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        await link.connect(str(path))
        await trio.SocketStream(link).send_all(b"CONNECT %d\n" % port)
        answer = await _receive_line(link)
    except (OSError, trio.BrokenResourceError):  # there is no socket yet, or it was hung up
        answer = b""
    except BaseException:
        link.close()
        raise
    if _ANSWER.fullmatch(answer):
        return _as_plain(link)
    link.close()
    if answer:
        raise LaunchFailed(f"the VMM's vsock socket answered {answer!r}")
    return None


async def _receive_line(link: trio.socket.SocketType) -> bytes:
    """Up to the line's end and no further: what follows is the guest's. Less if it ends before."""
    line = b""
    while not line.endswith(b"\n") and len(line) < _MAX_ANSWER:
        piece = await link.recv(1)
        if not piece:
            return b""
        line += piece
    return line


def _as_plain(link: trio.socket.SocketType) -> socket.socket:
    plain = socket.socket(fileno=link.detach())
    plain.setblocking(False)
    return plain
