"""The namespaces that the keeper lives in."""

from __future__ import annotations

import errno
import os
import signal
from typing import Any

from iii_core.sandbox import linux
from iii_sandbox_bubblewrap.keeper.identity import (
    RANGE,
    IdMap,
    contiguous,
    enter_own_namespace,
    in_first_user_namespace,
)

DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")
"""What bwrap binds into sandboxes. As mounts that are read-only they can be written to, but not given another mode or
owner: they are the machine's, and so is root where sandboxes have no ids of their own."""


def enter_namespaces(settings: dict[str, Any]) -> tuple[IdMap, bool]:
    """Enter the namespaces that hold all mounts; the ids of sandboxes, and whether we may mount block devices."""
    privileged = False
    if os.geteuid() == 0 and in_first_user_namespace() and not settings["unprivileged"]:
        try:
            linux.unshare(linux.CLONE_NEWNS)
            privileged = True
        except OSError as error:
            if error.errno != errno.EPERM:
                raise
    if privileged:
        idmap = contiguous(settings["id_base"], RANGE)
    else:
        uids, gids = settings["subuid"], settings["subgid"]
        idmap = enter_own_namespace(tuple(uids) if uids else None, tuple(gids) if gids else None)
        linux.unshare(linux.CLONE_NEWNS)
    linux.keep_mounts_to_oneself()
    for device in filter(os.path.exists, DEVICES):
        linux.mount(device, device, None, linux.MS_BIND)
        linux.remount_read_only(device)
    return idmap, privileged


def become_init() -> None:
    """Go on as the first process of a new pid namespace, which sees its own ``/proc``; this one waits for its end."""
    linux.unshare(linux.CLONE_NEWPID)
    pid = os.fork()
    if pid == 0:
        linux.end_with_parent(signal.SIGKILL)  # came it too late, the driver would still end us
        linux.mount("proc", "/proc", "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
        return
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # the driver must see the socket close when the child ends
    os.waitpid(pid, 0)
    os._exit(0)
