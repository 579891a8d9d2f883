"""Plays ``cloud-hypervisor``: its command line, its API as described, its events; and fails as it is told to.

Run as a program: ``vmm.py --description FILE.json --agent FILE --log FILE --faults JSON``, then the arguments that
``cloud-hypervisor`` takes. Each call is noted in the log, and whatever is not as described: such a request is answered
400. SIGUSR1 makes its guest reboot.

Faults, by name:

    start: ``die`` (at once), ``deaf`` (never serves the API), ``pause`` (serves it late)
    at: {call: kind}, with kind ``slow``, ``hang``, ``close``, ``truncate``, ``garbage``,
        ``die``, ``die-after`` (answers first), ``ignore`` (answers, and does nothing), or a refusal [status, body]
    vsock: ``never`` (nobody listens), ``garbage``, ``no-socket``
    after-boot: ``die``, ``reboot``
    forgets: names of ``VmConfig`` that it does not know
    machine: an initramfs: its guest is a machine of QEMU's (and that is no fault)
    heeds-button: whether its guest does
    events: bytes as text that it writes among its events
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import UnixStreamServer
from typing import Any

from description import Description
from guest import Guest
from machine import Machine

SLOW = 0.3


class Vmm:
    """State and behaviour of the VMM, apart from HTTP."""

    def __init__(self, faults: dict[str, Any], agent: Path, events: int) -> None:
        self.faults = faults
        self._agent = agent
        self._events = os.fdopen(events, "w")
        self._config: dict[str, Any] | None = None
        self._guest: Guest | Machine | None = None
        self.say("vmm", "starting")

    def say(self, source: str, event: str) -> None:
        document = {"timestamp": {"secs": 0, "nanos": 1}, "source": source, "event": event, "properties": None}
        self._events.write(self.faults.get("events", "") + json.dumps(document, indent=2) + "\n\n")
        self._events.flush()

    def call(self, path: str, body: bytes) -> tuple[int, object]:
        """Do what a call asks for; status and answer."""
        method = getattr(self, "do_" + path.partition(".")[0] + "_" + path.partition(".")[2].replace("-", "_"))
        return method(json.loads(body)) if body else method()

    def do_vmm_ping(self) -> tuple[int, object]:
        return 200, {"version": "v99.0", "build_version": "played", "pid": os.getpid(), "features": []}

    def do_vm_create(self, config: dict[str, Any]) -> tuple[int, object]:
        for named in (
            config["payload"]["kernel"],
            config["payload"]["initramfs"],
            *(d["path"] for d in config["disks"]),
        ):
            Path(named).open("rb").close()
        self._config = _without(config, self.faults.get("forgets", []))
        return 204, None

    def do_vm_info(self) -> tuple[int, object]:
        state = "Created" if self._guest is None else "Running"
        return 200, {"config": {**self._config, "watchdog": False}, "state": state, "memory_actual_size": 1}

    def do_vm_boot(self) -> tuple[int, object]:
        if self._config is None:
            return 404, None
        self.say("vm", "booting")
        if "machine" in self.faults:
            self._guest = Machine(self._config, Path(self.faults["machine"]), self.powered_off)
        else:
            self._guest = Guest(self._config, self._agent, self.faults, self.powered_off)
        self._guest.start()
        self.say("vm", "booted")
        if self.faults.get("after-boot") == "reboot":
            self.say("vm", "rebooting")
        if self.faults.get("after-boot") == "die":
            threading.Timer(0.01, self.die).start()
        return 204, None

    def do_vm_power_button(self) -> tuple[int, object]:
        if self._guest is None:
            return (404 if self._config is None else 405), None
        if self.faults.get("heeds-button"):
            threading.Timer(0.01, self.powered_off).start()
        return 204, None

    def do_vm_shutdown(self) -> tuple[int, object]:
        if self._guest is None:
            return (404 if self._config is None else 405), None
        self._guest.end()
        self._guest = None
        self.say("vm", "shutdown")
        return 204, None

    def do_vmm_shutdown(self) -> tuple[int, object]:
        self.say("vmm", "shutdown")
        threading.Timer(0.01, os._exit, [0]).start()
        return 204, None

    def powered_off(self) -> None:
        self.say("vm", "shutdown")
        self.say("vmm", "shutdown")
        os._exit(0)

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def _without(value: Any, names: list[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(below, names) for key, below in value.items() if key not in names}
    return [_without(below, names) for below in value] if isinstance(value, list) else value


class Handler(BaseHTTPRequestHandler):
    """One connection; requests one after the other."""

    protocol_version = "HTTP/1.1"
    server: Server

    def answer_request(self) -> None:
        path = self.path.removeprefix("/api/v1/")
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        if len(body) < size:  # the caller was cancelled meanwhile
            self.close_connection = True
            return None
        self.server.log(f"{self.command} {path}")
        wrong = self.server.description.wrong_request(self.command, path, body)
        if body and self.headers.get("Content-Type") != "application/json":
            wrong = "its body is not declared as JSON"
        if wrong is not None or self.path == path:
            self.server.log(f"wrong request: {wrong}")
            return self.reply(400, json.dumps(["Bad request", str(wrong)]).encode())
        kind = self.server.vmm.faults.get("at", {}).get(path)
        if self.fail_before(kind):
            return None
        status, answer = (204, None) if kind == "ignore" else self.server.vmm.call(path, body)
        data = b"" if answer is None else json.dumps(answer).encode()
        wrong = self.server.description.wrong_response(self.command, path, status, data)
        if wrong is not None:
            self.server.log(f"wrong response: {wrong}")
        self.fail_after(kind, status, data)
        return None

    do_GET = do_PUT = answer_request  # noqa: N815

    def fail_before(self, kind: Any) -> bool:
        """Fail instead of doing what was asked; whether it did."""
        match kind:
            case "slow":
                time.sleep(SLOW)
                return False
            case "hang":
                self.rfile.read(1)  # until the caller hangs up
            case "close":
                self.close_connection = True
            case "garbage":
                self.wfile.write(b"\xff\xfe\x00 this is no HTTP\r\n\r\n")
                self.close_connection = True
            case "die":
                self.server.vmm.die()
            case [status, answer]:
                self.reply(status, answer.encode())
            case _:
                return False
        return True

    def fail_after(self, kind: Any, status: int, data: bytes) -> None:
        if kind == "truncate":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{")
            self.close_connection = True
        else:
            self.reply(status, data)
        if kind == "die-after":
            self.server.vmm.die()

    def reply(self, status: int, data: bytes) -> None:
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if data:  # whoever has a whole answer may have hung up
            self.wfile.write(data)

    def handle(self) -> None:
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(UnixStreamServer):
    """Serves the inherited socket."""

    def __init__(self, listener: socket.socket, vmm: Vmm, description: Description, log: Path) -> None:
        super().__init__("", Handler, bind_and_activate=False)
        self._log = log
        self.socket.close()
        self.socket = listener
        self.vmm = vmm
        self.description = description

    def log(self, text: str) -> None:
        with self._log.open("a") as file:
            file.write(text + "\n")


def number_of(text: str) -> int:
    """The descriptor in ``fd=N``."""
    name, _, value = text.partition("=")
    if name != "fd":
        raise argparse.ArgumentTypeError("only fd=N is played")
    return int(value)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--description", type=Path, required=True)
    parser.add_argument("--agent", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--faults", type=json.loads, default={})
    parser.add_argument("--version", action="version", version="cloud-hypervisor v99.0")
    parser.add_argument("--api-socket", type=number_of, required=True)
    parser.add_argument("--event-monitor", type=number_of, required=True)
    parser.add_argument("--seccomp", choices=["true", "false", "log"], default="true")
    options = parser.parse_args()
    start = options.faults.get("start")
    if start == "die":
        sys.exit("Error: it is not to be")
    if start == "deaf":
        signal.pause()
    if start == "pause":
        time.sleep(SLOW)
    vmm = Vmm(options.faults, options.agent, options.event_monitor)
    listener = socket.socket(fileno=options.api_socket)
    signal.signal(signal.SIGUSR1, lambda *_: vmm.say("vm", "rebooting"))
    Server(listener, vmm, Description.load(options.description), options.log).serve_forever()


if __name__ == "__main__":
    main()
