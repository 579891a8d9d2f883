"""The server of one mounted folder: from a fork of the sandbox host to virtiofsd. A program, which never returns.

QEMU's own virtiofsd serves what the guest asks for with the guest's user ids, and cannot be told to refuse writes. So

- it gets to see the folder through a mount of its own, read-only unless wished otherwise, without set-user-ID
  programs and devices; and the mounts below it likewise. It has no right to change that: the mount is made before
- it enters a user namespace, where root and all others are nobody of this machine: user ids of the guest are those of
  the sandboxes here. It may do in the folder what they may.

Then it confines itself: to the folder, which becomes its root, and by a system call filter.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any, Final, NoReturn

from iii_core.sandbox import linux

STAGE: Final = "/tmp"  # noqa: S108 - in this process's own mount namespace, covered with a tmpfs of its own
SHOWN: Final = f"{STAGE}/shown"
ID_COUNT: Final = 65536
FILES: Final = 1_000_000
"""It holds a descriptor for each file that the guest's kernel remembers."""


def main() -> NoReturn:
    """Arguments: JSON (`iii_sandbox_libvirt.shares`).

    The descriptor ``status`` gets what went wrong, and is closed without a word when virtiofsd is started.
    """
    plan: dict[str, Any] = json.loads(sys.argv[-1])
    status = plan["status"]
    os.set_inheritable(status, False)
    try:
        _set_up(plan["source"], plan["writable"], plan["first_id"])
        os.execve(plan["program"], _argv(plan), {})  # noqa: S606 - nobody wants a shell here
    except OSError as error:
        os.write(status, str(error.strerror).encode(errors="replace"))
    finally:  # nothing may unwind into a second life
        os._exit(1)


def _argv(plan: dict[str, Any]) -> list[str]:
    options = ("source=" + SHOWN, "sandbox=namespace", "cache=auto", "log_level=err")
    words = [word for option in options for word in ("-o", option)]
    return ["virtiofsd", f"--fd={plan['listener']}", "--rlimit-nofile=0", *words]


def _set_up(source: str, writable: bool, first_id: int) -> None:
    linux.unshare(linux.CLONE_NEWNS)
    linux.keep_mounts_to_oneself()
    _show(source, writable)
    _allow_files()
    _become_nobody(first_id)
    os.chdir("/")
    linux.end_with_parent(signal.SIGKILL)  # last: changed ids forget it
    if os.getppid() == 1:
        raise OSError(0, "the sandbox host has ended")


def _show(source: str, writable: bool) -> None:
    folder = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    if str(Path(f"/proc/self/fd/{folder}").readlink()) != source:
        raise OSError(0, "it is a link now")
    linux.mount("tmpfs", STAGE, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=0755")
    Path(SHOWN).mkdir(0o755)
    linux.mount(f"/proc/self/fd/{folder}", SHOWN, None, linux.MS_BIND | linux.MS_REC)
    linux.restrict_mounts(SHOWN, linux.MS_NOSUID | linux.MS_NODEV | (0 if writable else linux.MS_RDONLY))
    os.close(folder)


def _allow_files() -> None:
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
    except (OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _become_nobody(first_id: int) -> None:
    """Root of a user namespace; a child that stays outside says whom its ids are (user_namespaces(7))."""
    ours = os.getpid()
    entered, enter = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(enter)
            if os.read(entered, 1):
                for name in ("gid_map", "uid_map"):
                    Path(f"/proc/{ours}/{name}").write_text(f"0 {first_id} {ID_COUNT}\n", encoding="ascii")
                os._exit(0)
        finally:
            os._exit(1)
    os.close(entered)
    try:
        linux.unshare(linux.CLONE_NEWUSER)
        os.write(enter, b"1")
    finally:
        os.close(enter)
        _, how = os.waitpid(child, 0)
    if how != 0:
        raise OSError(0, "the user ids of sandboxes do not exist in this user namespace")
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
