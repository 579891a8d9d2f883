"""An emulated machine (TCG) whose processor has virtualisation of its own, on this machine's files: so KVM works there.

Its kernel is the one that guests boot, whose modules bring KVM. Its root is this machine's, read-only, over virtiofs,
under a layer in memory; nothing that it does reaches this machine but what it writes to its serial ports.
"""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import iii_sandbox_guest
from iii_sandbox_guest.initramfs import write_cpio
from iii_sandbox_guest.modules import resolve_modules

import iii_core

MEMORY = "2048M"
MODULES = ("virtio_pci", "virtiofs", "overlay", "vhost_vsock", "kvm_amd")  # TCG emulates AMD's virtualisation alone
VIRTIOFSD = (Path("/usr/lib/qemu/virtiofsd"), Path("/usr/libexec/virtiofsd"))
BUSYBOX = Path("/bin/busybox")
BRIEF = 10.0
INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
for module in $($b cat /modules/order); do $b insmod /modules/$module; done
$b mount -t virtiofs -o ro root /lower
$b mount -t tmpfs -o size=1g over /over
$b mkdir /over/up /over/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/over/up,workdir=/over/work overlay /root
for folder in dev proc sys; do $b mount --move /$folder /root/$folder; done
$b mount -t tmpfs run /root/run
$b mkdir -p /root/dev/shm /root/dev/pts
$b mount -t tmpfs shm /root/dev/shm
$b mount -t devpts pts /root/dev/pts
$b ip link set lo up
$b cp /run.sh /root/run/run.sh
exec $b switch_root /root /bin/sh /run/run.sh
"""
RUN = """exec </dev/null >/dev/ttyS1 2>/dev/ttyS0
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/run
chgrp kvm /dev/kvm && chmod 660 /dev/kvm
{command}
echo "exit $?"
echo o >/proc/sysrq-trigger
sleep 10
"""


class NestedMachine:
    """Boots once and runs one command.

    Args:
        kernel: a folder with ``vmlinux`` and ``modules/``.
        folder: an empty folder for its files.
    """

    def __init__(self, kernel: Path, folder: Path) -> None:
        self._kernel = kernel
        self._folder = folder
        self._view = folder / "view"
        self._initramfs = folder / "initramfs"
        self._console = folder / "console"
        self._output = folder / "output"
        self._files = folder / "files.sock"

    def run(self, command: list[str | Path], timeout: float) -> str:
        """What the command prints on its standard output, and a line ``exit CODE``; the rest is in `report`.

        Raises ``subprocess.TimeoutExpired`` if the machine does not end in time; it is ended then.
        """
        self._view.mkdir()
        self._initramfs.write_bytes(self._render_initramfs(shlex.join(map(str, command))))
        with self._serving_files():
            subprocess.run(self._argv(), check=True, stdin=subprocess.DEVNULL, timeout=timeout)
        return self._output.read_text(errors="replace").replace("\r\n", "\n")

    def report(self) -> str:
        """What was said in there so far, and by whom."""
        files = (self._console, self._output, self._folder / "files.log")
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-8000:]}" for path in files if path.exists()
        )

    @contextmanager
    def _serving_files(self) -> Iterator[None]:
        """A view of this machine's root file system that is read-only for whoever serves it too, for root is served."""
        program = next(path for path in VIRTIOFSD if path.exists())
        serve = [program, f"--socket-path={self._files}", "-o", f"source={self._view}"]
        serve += ["-o", "cache=always", "-o", "sandbox=chroot"]
        shown = {Path("/"), *(found for found in needed_folders() if found.stat().st_dev != Path("/").stat().st_dev)}
        binds = [f"mount --bind {path} {self._view}{path}" for path in sorted(shown)]
        binds += [f"mount -o remount,bind,ro {self._view}{path}" for path in sorted(shown)]
        script = " && ".join([*binds, f"exec {shlex.join(map(str, serve))}"])
        with (self._folder / "files.log").open("wb") as log:
            server = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", script], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            deadline = time.monotonic() + BRIEF
            while not self._files.exists():  # another program's socket: there is no event to wait for
                assert server.poll() is None, self.report()
                assert time.monotonic() < deadline, self.report()
                time.sleep(0.02)
            yield
        finally:
            server.kill()
            server.wait(BRIEF)

    def _argv(self) -> list[str]:
        argv = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        argv += ["-machine", "q35,memory-backend=memory", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"]
        argv += ["-m", MEMORY, "-object", f"memory-backend-memfd,id=memory,size={MEMORY},share=on"]
        argv += ["-kernel", str(self._kernel / "vmlinux"), "-initrd", str(self._initramfs)]
        argv += ["-append", "console=ttyS0 quiet loglevel=6 panic=-1 cryptomgr.notests no_timer_check"]
        argv += ["-serial", f"file:{self._console}", "-serial", f"file:{self._output}"]
        argv += ["-chardev", f"socket,id=files,path={self._files}"]
        return [*argv, "-device", "vhost-user-fs-pci,chardev=files,tag=root"]

    def _render_initramfs(self, command: str) -> bytes:
        folder, program, file = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755, stat.S_IFREG | 0o644
        none = (0, 0)
        modules = [
            (f"{module.name}.ko", module.read()) for module in resolve_modules(self._kernel / "modules", MODULES)
        ]
        order = "".join(f"{name}\n" for name, _ in modules)
        names = ("bin", "dev", "lower", "modules", "over", "proc", "root", "sys")
        return write_cpio(
            [
                *((name, folder, b"", none) for name in names),
                ("dev/console", stat.S_IFCHR | 0o600, b"", (5, 1)),
                ("init", program, INIT.encode(), none),
                ("run.sh", file, RUN.format(command=command).encode(), none),
                ("bin/busybox", program, BUSYBOX.read_bytes(), none),
                ("modules/order", file, order.encode(), none),
                *((f"modules/{name}", file, content, none) for name, content in modules),
            ]
        )


def needed_folders() -> set[Path]:
    """Where Python and we are installed; perhaps on other file systems than the root."""
    packages = (Path(module.__path__[0]) for module in (iii_core, iii_sandbox_guest))
    return {Path(sys.prefix), Path(sys.base_prefix), *(Path(os.path.realpath(path)).parent for path in packages)}
