"""The process that is the gate of one virtual machine.

It lives in the gate's network namespace with a card of its own there, to which it carries QEMU's frames. It is told
what to make on its command line, says over its socket when that is done, and gets QEMU's connection there. When the
socket ends, so does it, and then the uplink, whose lifeline it holds. Single-threaded, standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any, Final, NoReturn

from iii_core.sandbox import linux
from iii_sandbox_gate.addresses import MACHINE_GATEWAY, MACHINE_PREFIX
from iii_sandbox_gate.namespace import READY_TIMEOUT, enter_gate, limit_uplink, uplink_argv
from iii_sandbox_gate.pump import Pump, StreamBroken
from iii_sandbox_gate.rules import MACHINE_SIDE
from iii_sandbox_gate.tap import open_tap

FAREWELL_TIMEOUT: Final = 2.0
HARDWARE: Final = bytes.fromhex("026969690001")
"""The same for all: a guest that is restored from a saved state believes to know its gateway. Locally administered."""
SETTINGS: Final = {"ip_forward": "1", "icmp_ratelimit": "0"}
"""The gate passes packets on, and says of every one that it refuses (the kernel's ``networking/ip-sysctl.rst``)."""


class Uplink:
    """slirp4netns, which must be our child from before we leave the network namespace it uses.

    It begins when it is told to, and ends when we do, however that comes about: we hold the other end of its lifeline.
    """

    def __init__(self, argv: list[str]) -> None:
        begin_read, self._begin = os.pipe2(os.O_CLOEXEC)
        self._ready, ready_write = os.pipe2(os.O_CLOEXEC)
        leave_read, self._leave = os.pipe2(os.O_CLOEXEC)
        namespace = f"/proc/{os.getpid()}/ns/net"
        pid = os.fork()
        if pid == 0:
            os.close(self._begin)
            for inherited in (ready_write, leave_read):
                os.set_inheritable(inherited, True)
            _become(uplink_argv(argv, namespace, ready=ready_write, leave=leave_read), begin_read)
        for theirs in (begin_read, ready_write, leave_read):
            os.close(theirs)
        self._pid = pid
        self.pidfd = os.pidfd_open(pid)

    def begin(self) -> None:
        """Let it connect our network namespace; returns when that is done. Raises ``OSError``."""
        os.write(self._begin, b"1")
        poller = select.poll()
        poller.register(self._ready, select.POLLIN)
        if not poller.poll(READY_TIMEOUT * 1000):
            raise OSError("the uplink of its network did not come up: timed out")
        if not os.read(self._ready, 1):
            raise OSError("the uplink of its network did not come up")

    def end(self) -> None:
        """End it, begun or not, and wait for that a moment; else whoever is our subreaper collects it."""
        for lifeline in (self._begin, self._leave):
            os.close(lifeline)
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        poller.poll(FAREWELL_TIMEOUT * 1000)
        os.waitpid(self._pid, os.WNOHANG)


def _become(argv: list[str], begin: int) -> NoReturn:
    """The program makes mounts, and unmounts what it does not need: that must be its own affair."""
    try:
        if not os.read(begin, 1):
            os._exit(0)
        linux.unshare(linux.CLONE_NEWNS)
        linux.keep_mounts_to_oneself()
        limit_uplink()
        os.execv(argv[0], argv)  # noqa: S606 - nobody wants a shell here
    except OSError as error:
        _say(f"{argv[0]} cannot be started: {error}")
    os._exit(1)


def make_gate(plan: dict[str, Any]) -> tuple[int, Uplink]:
    """Move into a new gate with a card for the machine; the card and the uplink. Raises ``OSError``."""
    is_root = os.geteuid() == 0
    if not is_root:
        linux.enter_own_user_namespace()
    uplink = Uplink(list(plan["uplink"]))
    try:
        enter_gate(plan["nft"], plan["rules"])
        for name, value in SETTINGS.items():
            Path(f"/proc/sys/net/ipv4/{name}").write_text(value, encoding="ascii")
        tap = open_tap(MACHINE_SIDE, HARDWARE, MACHINE_GATEWAY, MACHINE_PREFIX)
        uplink.begin()
        _drop_rights(plan["user"] if is_root else None)
    except OSError:
        uplink.end()
        raise
    return tap, uplink


def _drop_rights(user: list[int] | None) -> None:
    if user is not None:
        uid, gid = user
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    linux.drop_capabilities()


class Service:
    """Serves until the driver is gone."""

    def __init__(self, control: socket.socket, tap: int, uplink: Uplink) -> None:
        self._control = control
        self._tap = tap
        self._uplink = uplink
        self._pump: Pump | None = None
        self._poll = select.poll()

    def run(self) -> None:
        """Until the control socket ends."""
        self._poll.register(self._control, select.POLLIN)
        self._poll.register(self._uplink.pidfd, select.POLLIN)
        while True:
            for descriptor, events in self._poll.poll():
                if descriptor == self._control.fileno():
                    if not self._take_stream():
                        return
                elif descriptor == self._uplink.pidfd:
                    self._poll.unregister(descriptor)
                    _say("this sandbox has no network any more: slirp4netns has ended")
                elif self._pump is not None:
                    self._carry(self._pump, descriptor, events)

    def _take_stream(self) -> bool:
        """QEMU's connection; False for the end."""
        data, descriptors, _, _ = socket.recv_fds(self._control, 16, 1)
        if not data:
            return False
        if self._pump is not None:
            self._close_stream(self._pump)
        self._pump = Pump(self._tap, socket.socket(fileno=descriptors[0]))
        self._poll.register(self._pump.stream, select.POLLIN)
        self._poll.register(self._tap, select.POLLIN)
        return True

    def _carry(self, pump: Pump, descriptor: int, events: int) -> None:
        try:
            if descriptor == self._tap:
                pump.from_card()
            elif events & select.POLLOUT:
                pump.flush()
            if descriptor != self._tap and events & ~select.POLLOUT:
                pump.from_stream()
        except StreamBroken as error:
            if str(error):
                _say(f"this sandbox has no network any more: QEMU sent {error}")
            self._close_stream(pump)
            return
        self._poll.modify(pump.stream, select.POLLIN | (select.POLLOUT if pump.is_full else 0))
        self._poll.modify(self._tap, 0 if pump.is_full else select.POLLIN)

    def _close_stream(self, pump: Pump) -> None:
        self._poll.unregister(pump.stream)
        self._poll.unregister(self._tap)
        pump.stream.close()
        self._pump = None


def _say(line: str) -> None:
    """On the sandbox's console, which is our standard error."""
    sys.stderr.write(f"iii: {line}\n")
    sys.stderr.flush()


def main() -> None:
    """Serve the driver on the socket that the command line names, with the plan beside it."""
    control = socket.socket(fileno=int(sys.argv[-2]))
    control.set_inheritable(False)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        tap, uplink = make_gate(json.loads(sys.argv[-1]))
    except OSError as error:
        with contextlib.suppress(ConnectionError):
            control.send(json.dumps({"error": str(error)}).encode())
        return
    try:
        control.send(b"{}")
        Service(control, tap, uplink).run()
    except ConnectionError:  # the driver has gone already
        pass
    finally:
        uplink.end()
