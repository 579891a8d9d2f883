"""The guest of the played VMM: the real agent in a namespace sandbox, behind a hybrid vsock.

Its root is a copy of the root disk's image, kept beside the data disk, whose place it takes.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

AGENT_PORT: Final = 1024
BOOT_SECONDS: Final = 0.03


class Guest:
    """A machine that has been booted; one connection at a time gets an agent."""

    def __init__(
        self, config: dict[str, Any], agent: Path, faults: dict[str, Any], powered_off: Callable[[], None]
    ) -> None:
        self._disks = {disk["serial"]: Path(disk["path"]) for disk in config["disks"]}
        self._agent = agent
        self._faults = faults
        self._powered_off = powered_off
        self._socket = config["vsock"]["socket"]
        self._console = Path(config["serial"]["file"])
        self._listens = time.monotonic() + BOOT_SECONDS
        self._running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._console.open("wb", buffering=0) as console:
            console.write(b"the guest's kernel speaks\n")
        if "no-socket" in self._faults.get("vsock", ""):
            return
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self._socket)
        listener.listen(8)
        threading.Thread(target=self._serve, args=[listener], daemon=True).start()

    def end(self) -> None:
        if self._running is not None:
            self._running.kill()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            connected, _ = listener.accept()
            with connected:
                self._answer(connected)

    def _answer(self, connected: socket.socket) -> None:
        line = connected.recv(64)
        if self._faults.get("vsock") == "never" or time.monotonic() < self._listens:
            return  # nobody in the guest listens yet
        if line != b"CONNECT %d\n" % AGENT_PORT:
            return
        if self._faults.get("vsock") == "garbage":
            connected.sendall(b"\x00what?\n")
            return
        root = self._root()
        connected.sendall(b"OK 1073741824\n")
        self._run_agent(connected, root)

    def _root(self) -> Path:
        root = self._disks["iii-data"].with_suffix(".guest")
        if not root.exists():
            fresh = root.with_suffix(".new")
            shutil.rmtree(fresh, ignore_errors=True)
            command = ["unsquashfs", "-n", "-q", "-d", fresh, self._disks["iii-root"]]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            (fresh / "workspace").mkdir(exist_ok=True)
            fresh.rename(root)
        return root

    def _run_agent(self, link: socket.socket, root: Path) -> None:
        self.end()
        # A bwrap that is killed while it starts leaves a child that waits for it; a pid namespace around both does not.
        argv = ["setpriv", "--pdeathsig", "KILL", "unshare", "--fork", "--pid", "--kill-child=KILL"]
        argv += ["--mount-proc"]  # bwrap looks its child up there
        argv += ["--user", "--map-root-user"] if os.geteuid() else []
        argv += ["bwrap", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--die-with-parent"]
        argv += ["--new-session", "--as-pid-1", "--bind", str(root), "/", "--dev", "/dev", "--proc", "/proc"]
        argv += ["--tmpfs", "/tmp", "--tmpfs", "/run", "--ro-bind", str(self._agent), "/run/agent"]
        argv += ["/run/agent", "--fd", str(link.fileno())]
        self._running = subprocess.Popen(argv, pass_fds=[link.fileno()], stdin=subprocess.DEVNULL)
        threading.Thread(target=self._watch, args=[self._running], daemon=True).start()

    def _watch(self, agent: subprocess.Popen[bytes]) -> None:
        if agent.wait() == 0:
            self._powered_off()
