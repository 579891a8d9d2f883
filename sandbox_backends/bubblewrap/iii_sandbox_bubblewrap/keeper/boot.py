"""One boot: from a fork of the keeper to ``bwrap``. Everything here runs in the child, which never returns.

Order matters. Files are opened while the child may still open them; the overlay is mounted with the keeper's rights,
in a mount namespace of the child's own; then the child becomes root of a fresh user namespace and has no rights on the
machine any more when it first touches the image's contents.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import signal
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from iii_sandbox_gate.namespace import enter_gate

from iii_core.sandbox import linux

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

STAGE = "/tmp"  # noqa: S108 - in the child's own mount namespace, covered with a tmpfs of its own
ROOT = f"{STAGE}/root"
AGENT = f"{STAGE}/agent"
SHOWN = f"{STAGE}/shown"
MOUNT_POINTS = ("proc", "dev", "tmp", "run", "workspace")
MEMORY_FOLDERS = ("tmp", "run")
SETUP_FAILED = 125
MOUNT_TIMEOUT = 10.0


@dataclass(frozen=True)
class Gate:
    """The network of a sandbox that has one; see `iii_sandbox_gate.plan`."""

    nft: str
    rules: str
    resolv_conf: str


@dataclass(frozen=True)
class BootPlan:
    """What the driver decided; see `iii_sandbox_bubblewrap.render`.

    ``argv`` is bwrap's command line, whose descriptor numbers count from `FIRST_FD` in the order of ``descriptors``;
    ``disk`` is the file system in a file that ``writable`` has if it has a size of its own;
    ``shown`` are folders of the machine by their real paths, ``targets`` the places in the root that they get;
    ``gate`` is None for a sandbox without a network, which bwrap gives a namespace of its own.
    """

    bwrap: str
    argv: tuple[str, ...]
    agent: str
    lower: str
    writable: str
    disk: str | None
    hosts: str
    userxattr: bool
    ranged: bool
    root: tuple[int, int]
    pids: int | None
    shown: tuple[str, ...]
    targets: tuple[str, ...]
    gate: Gate | None


FIRST_FD = 10


def become_bwrap(plan: BootPlan, console: int, descriptors: tuple[int, ...], enter: Callable[[], None]) -> NoReturn:
    """Turn this process into bwrap.

    Args:
        plan: see `BootPlan`.
        console: where standard output and error go from now on.
        descriptors: what bwrap inherits, renumbered from `FIRST_FD`.
        enter: blocks until the parent has written this process's id maps and put it into its cgroup.
    """
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(console, 1)
        os.dup2(console, 2)
        bwrap = os.open(plan.bwrap, os.O_PATH | os.O_CLOEXEC)
        _set_up(plan, enter)
        bwrap, *_ = _renumber((bwrap, *descriptors))
        os.chdir("/")
        _reset_signals()
        os.execve(bwrap, plan.argv, {})  # noqa: S606 - nobody wants a shell here
    except Exception as error:  # whatever it is, the console is where it belongs
        sys.stderr.write(f"sandbox set-up failed: {error}\n")
        sys.stderr.flush()
    finally:  # nothing may unwind into the keeper's code
        os._exit(SETUP_FAILED)


def _set_up(plan: BootPlan, enter: Callable[[], None]) -> None:
    linux.unshare(linux.CLONE_NEWNS)
    if plan.gate is not None:  # ours, not the sandbox's: nobody in there has any right over it
        enter_gate(plan.gate.nft, plan.gate.rules)
    with _stage(plan) as layers:
        linux.mount("overlay", ROOT, "overlay", linux.MS_NODEV | linux.MS_NOSUID, layers)
    linux.unshare(linux.CLONE_NEWUSER)
    enter()
    if plan.ranged:
        os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    _forbid_user_namespaces()
    _prepare_root(plan)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if plan.pids is not None:
        resource.setrlimit(resource.RLIMIT_NPROC, (plan.pids, plan.pids))
    linux.empty_bounding_set()


@contextlib.contextmanager
def _stage(plan: BootPlan) -> Generator[str]:
    """Cover /tmp with the stage and bind the agent and shown folders there; yields the overlay's options.

    Layers are named by descriptor: that spares every question about their paths (colons, commas, being below /tmp).
    """
    flags = os.O_PATH | os.O_CLOEXEC
    folder = plan.writable if plan.disk is None else _mount_disk(plan.disk, f"{plan.writable}/disk")
    upper, work = _writable_layer(folder, plan.root)
    opened = [os.open(path, flags) for path in (plan.lower, upper, work, plan.agent)]
    lower_fd, upper_fd, work_fd, agent_fd = opened
    shown = [_open_shown(path) for path in plan.shown]
    linux.mount("tmpfs", STAGE, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=0755")
    Path(ROOT).mkdir(0o755)
    os.close(os.open(AGENT, os.O_CREAT | os.O_WRONLY, 0o444))
    linux.mount(f"/proc/self/fd/{agent_fd}", AGENT, None, linux.MS_BIND)
    for number, descriptor in enumerate(shown):
        Path(f"{SHOWN}/{number}").mkdir(0o755, parents=True)
        linux.mount(f"/proc/self/fd/{descriptor}", f"{SHOWN}/{number}", None, linux.MS_BIND | linux.MS_REC)
    options = f"lowerdir=/proc/self/fd/{lower_fd},upperdir=/proc/self/fd/{upper_fd},workdir=/proc/self/fd/{work_fd}"
    yield options + (",userxattr" if plan.userxattr else "")
    for descriptor in (*opened, *shown):
        os.close(descriptor)


def _open_shown(path: str) -> int:
    """Only if it still is what the driver checked: a path without any link."""
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    if str(Path(f"/proc/self/fd/{descriptor}").readlink()) != path:
        raise OSError(f"{path} is a link now")
    return descriptor


def _mount_disk(disk: str, folder: str) -> str:
    """Mount it in this mount namespace, with which it goes, and its loop device too (``losetup(8)``, autoclear)."""
    with contextlib.suppress(FileExistsError):
        Path(folder).mkdir(0o700)
    done = subprocess.run(
        ["mount", "-t", "ext4", "-o", "loop,nodev,nosuid,discard", "--", disk, folder],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=MOUNT_TIMEOUT,
        check=False,
    )
    if done.returncode != 0:
        raise OSError(done.stderr.decode(errors="replace").strip())
    return folder


def _writable_layer(folder: str, root: tuple[int, int]) -> tuple[str, str]:
    """The overlay's upper and work directory, made at the first boot and owned by the sandbox's root."""
    paths = (f"{folder}/upper", f"{folder}/work")
    for path in paths:
        with contextlib.suppress(FileExistsError):
            Path(path).mkdir(0o755)
            os.chown(path, *root)
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != root[0]:
            raise OSError(
                f"{path} belongs to user id {found.st_uid}, not {root[0]}; remove the worker and add it again"
            )
    return paths


def _forbid_user_namespaces() -> None:
    """No user namespace can be made below ours, however the system call filter may be fooled (``namespaces(7)``)."""
    try:
        Path("/proc/sys/user/max_user_namespaces").write_text("0", encoding="ascii")
    except OSError as error:
        if error.errno != errno.EROFS:  # containers mount it so; the system call filter says no as well
            raise


def _prepare_root(plan: BootPlan) -> None:
    """Make sure that every mount point is a real directory, whatever the image or its last run left there.

    bwrap resolves mount points through symbolic links, and an image could aim those at the old root. So links are
    replaced, or refused on the way to a shown folder.
    """
    root = os.open(ROOT, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for name in MOUNT_POINTS:
            _require(root, name, stat.S_ISDIR, lambda name: os.mkdir(name, 0o755, dir_fd=root))
        _require(root, "etc", stat.S_ISDIR, lambda name: os.mkdir(name, 0o755, dir_fd=root))
        etc = os.open("etc", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
        try:
            _write_hosts(etc, plan.hosts)
            if plan.gate is not None:
                _replace(etc, "resolv.conf", plan.gate.resolv_conf)
        finally:
            os.close(etc)
        for target in plan.targets:
            _make_target(root, target)
    finally:
        os.close(root)


def _make_target(root: int, target: str) -> None:
    _, first, *_ = names = target.split("/")
    if first in MEMORY_FOLDERS:
        return  # bwrap makes it there
    folder = os.dup(root)
    for name in names[1:]:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=folder)
        try:
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        except NotADirectoryError:
            raise OSError(f"nothing can be mounted on {target}: {name} is a link or file in the image") from None
        finally:
            os.close(folder)
        folder = below
    os.close(folder)


def _require(folder: int, name: str, right: Callable[[int], bool], make: Callable[[str], None]) -> None:
    try:
        if right(os.lstat(name, dir_fd=folder).st_mode):
            return
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass
    make(name)


def _write_hosts(etc: int, hosts: str) -> None:
    """Name localhost in /etc/hosts, unless the image has a table of its own."""
    try:
        found = os.lstat("hosts", dir_fd=etc)
    except FileNotFoundError:
        found = None
    if found is not None and stat.S_ISREG(found.st_mode) and found.st_size:
        return
    _replace(etc, "hosts", hosts)


def _replace(etc: int, name: str, text: str) -> None:
    """Write a file in /etc instead of whatever the image has there; where a link led is nothing of ours."""
    try:
        os.unlink(name, dir_fd=etc)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        raise OSError(f"/etc/{name} is a folder in the image, and must be a file") from None
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=etc)
    try:
        os.fchmod(descriptor, 0o644)
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _renumber(descriptors: tuple[int, ...]) -> list[int]:
    """Give all but the first their numbers; every other one closes on exec by itself. Returns where they are else."""
    above = FIRST_FD + len(descriptors)
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, above) for descriptor in descriptors]
    for number, descriptor in enumerate(moved[1:], FIRST_FD):
        os.dup2(descriptor, number, inheritable=True)
    return moved


def _reset_signals() -> None:
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
