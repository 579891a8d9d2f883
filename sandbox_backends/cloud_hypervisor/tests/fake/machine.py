"""A guest with a kernel of its own: QEMU in the place of KVM, given the disks, console, kernel and sizes of the config.

QEMU has no hybrid vsock, and a vsock of the kernel's needs a device that few machines have. So the link alone differs:
the agent is told to use a virtio port, by a changed command line and an initramfs with that port's module.
"""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

AGENT_PORT: Final = 1024


class Machine:
    """As `guest.Guest`."""

    def __init__(
        self,
        config: dict[str, Any],
        initramfs: Path,
        powered_off: Callable[[], None],
    ) -> None:
        self._config = config
        self._initramfs = initramfs
        self._powered_off = powered_off
        self._port = Path(config["vsock"]["socket"] + "-port")
        self._qemu: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with socket.socket(socket.AF_UNIX) as port:  # QEMU connects, so that it need not be waited for
            port.bind(str(self._port))
            port.listen(1)
            self._qemu = subprocess.Popen(self._argv(), stdin=subprocess.DEVNULL)
            port.settimeout(50)
            connected, _ = port.accept()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self._config["vsock"]["socket"])
        listener.listen(8)
        threading.Thread(target=self._serve, args=[listener, connected], daemon=True).start()
        threading.Thread(target=self._watch, args=[self._qemu], daemon=True).start()

    def end(self) -> None:
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait()

    def _argv(self) -> list[str]:
        config, payload = self._config, self._config["payload"]
        cmdline = payload["cmdline"].replace(f"iii.link=vsock:{AGENT_PORT}", "iii.link=virtio:iii.agent")
        argv = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-nodefaults", "-no-user-config"]
        argv += ["-machine", "q35", "-cpu", "max", "-accel", "tcg,tb-size=64", "-display", "none", "-no-reboot"]
        argv += ["-m", str(config["memory"]["size"] >> 20), "-smp", str(config["cpus"]["boot_vcpus"])]
        argv += ["-kernel", payload["kernel"], "-initrd", str(self._initramfs), "-append", cmdline]
        argv += ["-serial", f"file:{config['serial']['file']}", "-device", "virtio-serial-pci"]
        argv += ["-chardev", f"socket,id=link,path={self._port}"]
        argv += ["-device", "virtserialport,chardev=link,name=iii.agent"]
        for number, disk in enumerate(config["disks"]):
            name = f"d{number}"
            readonly = "readonly=on,file.locking=off" if disk["readonly"] else "discard=unmap"
            argv += ["-drive", f"if=none,id={name},format={disk['image_type'].lower()},file={disk['path']},{readonly}"]
            argv += ["-device", f"virtio-blk-pci,drive={name},serial={disk['serial']}"]
        return argv

    def _watch(self, qemu: subprocess.Popen[bytes]) -> None:
        if qemu.wait() == 0:
            self._powered_off()

    def _serve(self, listener: socket.socket, port: socket.socket) -> None:
        """The first connection has the port for good."""
        connected, _ = listener.accept()
        if connected.recv(64) != b"CONNECT %d\n" % AGENT_PORT:
            return
        connected.sendall(b"OK 1073741824\n")
        for here, there in ((connected, port), (port, connected)):
            threading.Thread(target=_relay, args=[here, there], daemon=True).start()


def _relay(here: socket.socket, there: socket.socket) -> None:
    while data := here.recv(65536):
        there.sendall(data)
