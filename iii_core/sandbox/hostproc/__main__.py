"""Entry point: ``python -m iii_core.sandbox.hostproc FD``, where FD is the engine's connected socket.

The process lives as long as the other end of that socket. It is a session of its own, so a terminal's Ctrl-C reaches
the engine alone, which then closes the socket when it has stopped its workers.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from contextlib import suppress

import trio

from iii_core.host import PluginHost
from iii_core.link.accept import raise_descriptor_limit
from iii_core.records import SandboxBackend
from iii_core.sandbox import linux
from iii_core.sandbox.host_wire import MessageSocket
from iii_core.sandbox.hostproc.reaper import reap_orphans
from iii_core.sandbox.hostproc.server import serve


async def _main(sock: socket.socket) -> None:
    backends = PluginHost.create(environ=os.environ).collect(SandboxBackend)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reap_orphans)
        nursery.start_soon(_end_on_signal, sock)
        await serve(MessageSocket(sock), backends, os.environ)
        nursery.cancel_scope.cancel()


async def _end_on_signal(sock: socket.socket) -> None:
    """SIGTERM counts as the engine's end: the same orderly way out."""
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            sock.shutdown(socket.SHUT_RDWR)


def _keep_mounts_private() -> None:
    """What backends mount is seen by their sandboxes alone and ends with them (mount_namespaces(7)).

    Not being allowed to is no failure: a container's root may lack the right; its backends then cannot mount either.
    """
    with suppress(OSError):
        linux.unshare(linux.CLONE_NEWNS)
        linux.keep_mounts_to_oneself()


def main() -> None:
    """Run the sandbox host on the descriptor that the command line names."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise_descriptor_limit()
    linux.adopt_orphans()
    if os.geteuid() == 0:
        _keep_mounts_private()
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        sock.set_inheritable(False)
        trio.run(_main, sock)


if __name__ == "__main__":
    main()
