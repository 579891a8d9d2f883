"""A libvirtd like the machine's own, whose state is in folders that end with it; and the init that it wants.

    unshare --mount python daemonrunner.py CONFIG PIDFILE

Guests are daemons: they fall to us, and are collected at once, as any init does.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
STATE = ("/run/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt", "/etc/libvirt")


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


mount("--make-rprivate", "/")
for folder in STATE:
    Path(folder).mkdir(parents=True, exist_ok=True)
    mount("-t", "tmpfs", "-o", "mode=0755", "none", folder)
if Path("/dev/kvm").exists():  # these guests are emulated; see iii_sandbox_libvirt.places.hide_kvm
    mount("--bind", "/dev/null", "/dev/kvm")
Path("/etc/libvirt/qemu.conf").write_text('stdio_handler = "file"\ncgroup_controllers = []\n', encoding="ascii")
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
daemon = subprocess.Popen(["libvirtd", "--config", sys.argv[1], "--pid-file", sys.argv[2]], stdin=subprocess.DEVNULL)
signal.signal(signal.SIGTERM, lambda *_: daemon.terminate())
while os.wait()[0] != daemon.pid:
    pass
