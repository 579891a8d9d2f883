"""The keeper's main loop: requests of the driver in, ends of processes out.

The keeper is the first process of a pid namespace (``pid_namespaces(7)``): whenever and however it ends, the kernel
ends every process below it, at whatever point of a boot they are. Process ids differ from those outside, so what the
driver gets are pidfds.

Requests and answers are JSON datagrams (``SOCK_SEQPACKET``) with descriptors beside them::

    {"id": 1, "op": "boot", …} + [console, link, seccomp]  ->  {"id": 1}
    {"id": 2, "op": "kill", "boot": 1}                     ->  {"id": 2}
    {"id": 3, "op": "remove", "path": "…"}                 ->  {"id": 3}   when the tree is gone
    {"id": 4, "op": "release", "image": "…"}               ->  {"id": 4}
                                                               {"boot": 1, "role": "launcher"} + [pidfd]
                                                               {"boot": 1, "role": "agent"} + [pidfd]
                                                               {"boot": 1, "exit": "exit 0"}
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iii_sandbox_gate.namespace import READY_TIMEOUT

from iii_core.sandbox import linux
from iii_sandbox_bubblewrap.keeper import wire
from iii_sandbox_bubblewrap.keeper.boot import BootPlan, Gate, become_bwrap
from iii_sandbox_bubblewrap.keeper.images import ImageMounts, MountFailed
from iii_sandbox_bubblewrap.keeper.namespaces import become_init, enter_namespaces
from iii_sandbox_bubblewrap.keeper.removal import remove_tree
from iii_sandbox_bubblewrap.keeper.uplinks import Uplinks

if TYPE_CHECKING:
    from types import FrameType

    from iii_sandbox_bubblewrap.keeper.identity import IdMap


class Gone(Exception):
    """The driver is gone."""


@dataclass
class _Boot:
    """A running sandbox: bwrap (our child) and, once known, its agent (bwrap's child)."""

    number: int
    monitor: int
    info: int
    told: bytes = b""
    agent: int | None = None
    status: int | None = None
    pidfds: dict[int, int] = field(default_factory=dict[int, int])


@dataclass
class _Removal:
    """A tree that a child is deleting, and the requests that wait for it."""

    path: str
    requests: list[int]


class Keeper:
    """Single-threaded; `run` ends when the driver is gone."""

    def __init__(self, sock: socket.socket, images: ImageMounts, *, privileged: bool) -> None:
        self._sock = sock
        self._images = images
        self._privileged = privileged
        self._boots: dict[int, _Boot] = {}
        self._removals: dict[int, _Removal] = {}
        self._uplinks = Uplinks()
        self._poll = select.poll()
        self._wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, _woken)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)

    def run(self) -> None:
        """Serve until the driver is gone."""
        self._poll.register(self._sock, select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._sock.fileno():
                    try:
                        self._serve_one()
                    except Gone:
                        return
                elif descriptor == self._wake:
                    self._reap()
                else:
                    self._read_info(descriptor)

    def _serve_one(self) -> None:
        request, descriptors = self._receive()
        answer: dict[str, Any] = {"id": request["id"]}
        try:
            later = self._perform(request, descriptors)
            answer["root"] = self._images.idmap.root
        except (OSError, MountFailed, ValueError) as error:
            answer["error"] = str(error)
            later = False
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        if not later:
            self._send(answer)

    def _perform(self, request: dict[str, Any], descriptors: list[int]) -> bool:
        """Do what is asked; whether the answer comes later."""
        match request["op"]:
            case "boot":
                self._boot(request, descriptors)
            case "kill":
                self._kill(request["boot"])
            case "remove":
                self._remove(request["id"], request["path"])
                return True
            case "release":
                self._images.release(request["image"])
            case other:
                raise ValueError(f"unknown request {other!r}")
        return False

    def _boot(self, request: dict[str, Any], descriptors: list[int]) -> None:
        console, *inherited = descriptors
        lower = self._images.acquire(request["image"])
        idmap = self._images.idmap
        if self._privileged and idmap.root[0] == 0 and request["shown"]:
            raise ValueError("folders cannot be shown where root of a sandbox is root of this machine")
        plan = BootPlan(
            bwrap=request["bwrap"],
            argv=tuple(request["argv"]),
            agent=request["agent"],
            lower=lower,
            writable=request["writable"],
            disk=request["disk"],
            hosts=request["hosts"],
            userxattr=not self._privileged,
            ranged=idmap.ranged,
            root=idmap.root,
            pids=request["pids"],
            shown=tuple(request["shown"]),
            targets=tuple(request["targets"]),
            gate=Gate(**request["gate"]) if request["gate"] else None,
        )
        info_read, info_write = os.pipe2(os.O_CLOEXEC)
        try:
            monitor = self._fork_boot(plan, console, (info_write, *inherited), idmap, request)
        except BaseException:
            os.close(info_read)
            raise
        finally:
            os.close(info_write)
        boot = _Boot(request["id"], monitor, info_read)
        self._boots[boot.number] = boot
        os.set_blocking(info_read, False)
        self._poll.register(info_read, select.POLLIN)
        self._introduce(boot, "launcher", monitor)

    def _introduce(self, boot: _Boot, role: str, pid: int) -> None:
        boot.pidfds[pid] = os.pidfd_open(pid)
        self._send({"boot": boot.number, "role": role}, boot.pidfds[pid])

    def _fork_boot(
        self, plan: BootPlan, console: int, inherited: tuple[int, ...], idmap: IdMap, request: dict[str, Any]
    ) -> int:
        """Fork the child, and give it its ids, cgroup and uplink when it has entered its namespaces.

        It goes on when it is told to: by us, or by the uplink once that is up.
        """
        ours, theirs = socket.socketpair()
        with ours, theirs:
            pid = os.fork()
            if pid == 0:
                ours.close()
                signal.set_wakeup_fd(-1)

                def enter() -> None:
                    theirs.sendall(b"1")
                    theirs.settimeout(READY_TIMEOUT)
                    if not theirs.recv(1):
                        what = "the uplink of its network did not come up" if plan.gate else "its id maps were refused"
                        raise OSError(what)

                become_bwrap(plan, console, inherited, enter)
            theirs.close()
            if ours.recv(1):
                try:
                    for cgroup in request["cgroups"]:
                        Path(f"{cgroup}/cgroup.procs").write_text(str(pid), encoding="ascii")
                    idmap.write(pid)
                    if plan.gate is not None:
                        ready = ours.fileno()
                        self._uplinks.start(request["id"], request["uplink"], pid, ready=ready, console=console)
                except OSError:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    raise
                if plan.gate is None:
                    with contextlib.suppress(BrokenPipeError):
                        ours.sendall(b"1")
        return pid

    def _read_info(self, descriptor: int) -> None:
        for boot in list(self._boots.values()):  # none if its end came in the same round
            if boot.info == descriptor:
                self._drain_info(boot)

    def _drain_info(self, boot: _Boot) -> None:
        """bwrap writes one JSON document that names its child, and closes."""
        if boot.info < 0:
            return
        try:
            while data := os.read(boot.info, 4096):
                boot.told += data
        except BlockingIOError:
            return
        self._close_info(boot)
        with contextlib.suppress(ValueError, KeyError):
            agent = int(json.loads(boot.told)["child-pid"])
            with contextlib.suppress(ProcessLookupError):
                self._introduce(boot, "agent", agent)
                boot.agent = agent

    def _close_info(self, boot: _Boot) -> None:
        self._poll.unregister(boot.info)
        os.close(boot.info)
        boot.info = -1

    def _kill(self, number: int) -> None:
        """Kill the agent, whose end ends everything in its pid namespace; before it exists, bwrap itself."""
        boot = self._boots.get(number)
        if boot is None:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(boot.pidfds[boot.agent or boot.monitor], signal.SIGKILL)

    def _remove(self, number: int, path: str) -> None:
        """Delete in a child: it may take long, and others want to boot. Who asks twice is answered twice."""
        for removal in self._removals.values():
            if removal.path == path:
                removal.requests.append(number)
                return
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                signal.set_wakeup_fd(-1)
                remove_tree(path)
                status = 0
            except Exception as error:  # whatever it is, the log is where it belongs
                sys.stderr.write(f"cannot delete {path}: {error}\n")
                sys.stderr.flush()
            finally:  # nothing may unwind into the keeper's code
                os._exit(status)
        self._removals[pid] = _Removal(path, [number])

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            self._reaped(pid, status)
        ended = [boot for boot in self._boots.values() if boot.status is not None]
        if ended and not self._kill_orphans():  # else their end wakes us again
            for boot in ended:
                if self._uplinks.end(boot.number):
                    self._finish(boot)

    def _kill_orphans(self) -> list[int]:
        """Kill what a bwrap that was killed left behind: it is ours now, and we know all other children of ours.

        Its agent is among them, whether or not bwrap came to tell its number.
        """
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()
        known = {boot.monitor for boot in self._boots.values()} | self._removals.keys()
        known |= self._images.servers() | self._uplinks.processes()
        orphans = [pid for pid in map(int, children) if pid not in known]
        for pid in orphans:  # unreaped children of ours: their numbers can't be anybody else's
            os.kill(pid, signal.SIGKILL)
        return orphans

    def _reaped(self, pid: int, status: int) -> None:
        if pid in self._removals:
            problem = {"error": "the writable layer could not be deleted; see the sandbox host's log"}
            for number in self._removals.pop(pid).requests:
                self._send({"id": number, **(problem if status else {})})
        elif not self._images.server_ended(pid, status) and not self._uplinks.reaped(pid, status):
            for boot in self._boots.values():
                if boot.monitor == pid:
                    boot.status = status

    def _finish(self, boot: _Boot) -> None:
        """Nothing of it is left."""
        self._drain_info(boot)
        if boot.info >= 0:
            self._close_info(boot)
        for descriptor in boot.pidfds.values():
            os.close(descriptor)
        del self._boots[boot.number]
        code = os.waitstatus_to_exitcode(boot.status or 0)
        self._send({"boot": boot.number, "exit": f"signal {-code}" if code < 0 else f"exit {code}"})

    def _receive(self) -> tuple[dict[str, Any], list[int]]:
        data, ancillary, _, _ = self._sock.recvmsg(wire.MAX_MESSAGE, wire.ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC)
        if not data:
            raise Gone
        return wire.decode(data, ancillary)

    def _send(self, message: dict[str, Any], *descriptors: int) -> None:
        with contextlib.suppress(ConnectionError):  # then the next receive sees the end
            self._sock.sendmsg(*wire.encode(message, descriptors))


def _woken(number: int, frame: FrameType | None) -> None:
    """Nothing to do: the wake-up descriptor has been written to."""


def main() -> None:
    """Serve the driver on the socket that the command line names, with the settings beside it."""
    sock = socket.socket(fileno=int(sys.argv[-2]))
    sock.set_inheritable(False)
    settings = json.loads(sys.argv[-1])
    parent = os.getppid()
    try:
        idmap, privileged = enter_namespaces(settings)
        linux.end_with_parent(signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            return
        become_init()
        images = ImageMounts(settings["folder"], idmap, privileged=privileged)
    except OSError as error:
        sock.send(json.dumps({"error": str(error), "errno": error.errno}).encode())
        return
    ready = {"privileged": privileged, "ranged": idmap.ranged, "root": idmap.root}
    init = os.pidfd_open(os.getpid())
    sock.sendmsg(*wire.encode(ready, [init]))
    os.close(init)
    Keeper(sock, images, privileged=privileged).run()
