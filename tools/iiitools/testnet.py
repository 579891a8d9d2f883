"""A small world of network namespaces: a machine that iii runs on, and the outside. Needs root; nothing of it stays.

The machine has one public address and a private one, and resolvers on its loopback; its only way leads to the outside,
where every address that is not the machine's is the same server. Servers answer who they are, and note who was
reached, so that a test sees what really arrived, whatever a client believes.
"""

from __future__ import annotations

import json
import selectors
import socket
import struct
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MACHINE: Final = "11.22.33.2"
MACHINE_PRIVATE: Final = "10.1.1.1"
GATEWAY: Final = "11.22.33.1"
OUTSIDE: Final = "8.8.4.1"
PRIVATE: Final = "10.9.9.9"
PRIVATE_OTHER: Final = "10.9.8.9"
METADATA: Final = ("169.254.169.254", "168.63.129.16", "100.100.100.200")
PORT: Final = 8080
NAMES: Final = {"outside.test": OUTSIDE, "loop.test": "127.0.0.1", "private.test": PRIVATE, "machine.test": MACHINE}


@dataclass(frozen=True)
class World:
    """The two namespaces, by the process that holds each; ``folder`` has the servers' notes."""

    machine: int
    outside: int
    folder: Path

    def inside(self, *command: str | Path) -> list[str | Path]:
        """A command line that runs on the machine."""
        return enter(self.machine, *command)

    def reached(self, where: str) -> list[str]:
        """What has arrived at the servers of ``machine`` or ``outside`` so far: ``tcp 10.9.9.9 8080``."""
        return (self.folder / where).read_text(encoding="ascii").splitlines()

    def forget(self) -> None:
        """Let `reached` begin anew."""
        for where in ("machine", "outside"):
            with (self.folder / where).open("r+b") as file:  # the server appends
                file.truncate()


@contextmanager
def open_world(folder: Path) -> Generator[World]:
    """Make the world, with its servers, for as long as the block lasts."""
    with ExitStack() as stack:
        holders = [stack.enter_context(open_namespaces()) for _ in range(2)]
        machine, outside = holders
        _run(enter(outside, "ip", "link", "add", "way", "type", "veth", "peer", "name", "way", "netns", str(machine)))
        own = {
            machine: (f"{MACHINE}/24", "fd00:9::2/64", f"{MACHINE_PRIVATE}/32"),
            outside: (
                f"{GATEWAY}/24",
                "fd00:9::1/64",
                *(f"{a}/32" for a in (OUTSIDE, PRIVATE, PRIVATE_OTHER, *METADATA)),
            ),
        }
        for holder, addresses in own.items():
            for address in addresses:
                _run(
                    enter(holder, "ip", "address", "add", address, "dev", "way", *(["nodad"] if ":" in address else []))
                )
            for link in ("lo", "way"):
                _run(enter(holder, "ip", "link", "set", link, "up"))
        _run(enter(machine, "ip", "route", "add", "default", "via", GATEWAY))
        resolv_conf = folder / "resolv.conf"
        resolv_conf.write_text("nameserver 127.0.0.53\n", encoding="ascii")
        _run(enter(machine, "mount", "--bind", resolv_conf, "/etc/resolv.conf"))
        for name, holder in (("machine", machine), ("outside", outside)):
            (folder / name).touch()
            stack.enter_context(_server(enter(holder, sys.executable, __file__, name, folder / name)))
        yield World(machine, outside, folder)


@contextmanager
def open_namespaces() -> Generator[int]:
    """The process that a fresh network and mount namespace live by; they end with it, and it with us.

    They have no name that would have to be removed: `enter` them by the process.
    """
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "sh", "-c", "echo; exec sleep infinity"]
    with _server(command) as pid:
        yield pid


@contextmanager
def _server(command: Sequence[str | Path]) -> Generator[int]:
    """A process that prints a line when it is ready."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline(), f"{command} has ended"
            yield process.pid
        finally:
            process.kill()


def enter(holder: int, *command: str | Path) -> list[str | Path]:
    """A command line that runs in the namespaces of `open_namespaces`, in their root folder."""
    return ["nsenter", f"--net=/proc/{holder}/ns/net", f"--mount=/proc/{holder}/ns/mnt", *command]


def _run(command: Sequence[str | Path]) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=20)


# --- the servers ---


def answer_dns(query: bytes) -> bytes:
    """The answer to a query for one name (RFC 1035): its address of `NAMES`, or that there is none."""
    labels: list[str] = []
    at = 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode("ascii"))
        at += 1 + query[at]
    question, kind = query[12 : at + 5], struct.unpack_from("!H", query, at + 1)[0]
    name = ".".join(labels)
    found = NAMES.get(name) if kind == 1 else None
    code = 0 if name in NAMES else 3
    head = query[:2] + struct.pack("!5H", 0x8180 | code, 1, found is not None, 0, 0)
    record = struct.pack("!3HIH", 0xC00C, 1, 1, 60, 4) + socket.inet_aton(found) if found else b""
    return head + question + record


def serve(name: str, notes: Path) -> None:
    """Serve TCP at `PORT` and 53, and names by UDP, at all addresses here."""
    selector = selectors.DefaultSelector()
    for port in (PORT, 53):
        tcp = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        selector.register(tcp, selectors.EVENT_READ, "tcp")
    addresses = json.loads(subprocess.run(["ip", "-json", "-4", "address"], capture_output=True, check=True).stdout)
    for address in {"127.0.0.53", *(found["local"] for link in addresses for found in link["addr_info"])}:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)  # one for each: answers must come from where was asked
        udp.bind((address, 53))
        selector.register(udp, selectors.EVENT_READ, "udp")
    print("ready", flush=True)
    with notes.open("a", buffering=1, encoding="ascii") as out:
        while True:
            for key, _ in selector.select():
                assert isinstance(key.fileobj, socket.socket)
                if key.data == "udp":
                    query, asker = key.fileobj.recvfrom(4096)
                    out.write(f"udp {key.fileobj.getsockname()[0]} 53\n")
                    key.fileobj.sendto(answer_dns(query), asker)
                    continue
                client, _ = key.fileobj.accept()
                with client:
                    address, port = client.getsockname()[:2]
                    out.write(f"tcp {address.removeprefix('::ffff:')} {port}\n")
                    client.sendall(f"{name} {address.removeprefix('::ffff:')}\n".encode())


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]))
