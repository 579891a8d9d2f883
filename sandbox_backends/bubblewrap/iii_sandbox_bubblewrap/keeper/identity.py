"""User namespaces: which ids exist inside sandboxes, and who they are outside."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from iii_core.sandbox import linux

if TYPE_CHECKING:
    from collections.abc import Generator

RANGE = 65536


@dataclass(frozen=True)
class IdMap:
    """Rows of ``uid_map`` and ``gid_map``: (inside, outside, count)."""

    uids: tuple[tuple[int, int, int], ...]
    gids: tuple[tuple[int, int, int], ...]

    @property
    def ranged(self) -> bool:
        """Whether more than one user exists inside."""
        return sum(count for _, _, count in self.uids) > 1

    @property
    def root(self) -> tuple[int, int]:
        """Who uid 0 and gid 0 of the sandbox are outside."""
        return self.uids[0][1], self.gids[0][1]

    def write(self, pid: int) -> None:
        """Give the user namespace of ``pid`` these ids; needs CAP_SETUID in its parent namespace."""
        for name, rows in (("gid_map", self.gids), ("uid_map", self.uids)):
            text = "".join(f"{inside} {outside} {count}\n" for inside, outside, count in rows)
            Path(f"/proc/{pid}/{name}").write_text(text, encoding="ascii")  # one write, as the kernel wants it


def contiguous(base: int, count: int) -> IdMap:
    """Ids 0 … count-1 inside are ``base`` … outside."""
    rows = ((0, base, count),)
    return IdMap(uids=rows, gids=rows)


def in_first_user_namespace() -> bool:
    """Whether ids here are the machine's own. Root of another namespace (a rootless container's) may mount no disk."""
    return Path("/proc/self/uid_map").read_text(encoding="ascii").split() == ["0", "0", "4294967295"]


@contextlib.contextmanager
def namespace_fd(idmap: IdMap) -> Generator[int]:
    """A descriptor of a fresh user namespace with these ids, which no process lives in."""
    ready_read, ready_write = os.pipe()
    hold_read, hold_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(hold_write)
            linux.unshare(linux.CLONE_NEWUSER)
            os.write(ready_write, b"1")
            os.read(hold_read, 1)  # until the parent has what it wants, or is gone
        finally:
            os._exit(0)
    os.close(ready_write)
    os.close(hold_read)
    try:
        if not os.read(ready_read, 1):
            raise OSError("a user namespace cannot be created")
        idmap.write(pid)
        descriptor = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    finally:
        os.close(ready_read)
        os.close(hold_write)
        os.waitpid(pid, 0)


def enter_own_namespace(uids: tuple[int, int] | None, gids: tuple[int, int] | None) -> IdMap:
    """Become root of a new user namespace, as an ordinary user may.

    With subordinate ranges ``(first, count)`` (``subuid(5)``) and ``newuidmap`` installed, ids 1 … exist too; else
    only 0, which is us.

    Returns the ids inside, as seen by sandboxes nested in it: those map one to one.
    """
    uid, gid = os.getuid(), os.getgid()
    mapper = _prepare_mapper(uid, gid, uids, gids)
    linux.unshare(linux.CLONE_NEWUSER)
    if mapper is not None and mapper():
        count = 1 + min(uids[1] if uids else 0, gids[1] if gids else 0, RANGE - 1)
    else:
        _map_self_only(uid, gid)
        count = 1
    if count > 1:
        os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    # A row of a nested map must lie within one row of ours, user_namespaces(7).
    rows = ((0, 0, 1), (1, 1, count - 1)) if count > 1 else ((0, 0, 1),)
    return IdMap(uids=rows, gids=rows)


def _map_self_only(uid: int, gid: int) -> None:
    # Required before an unprivileged gid_map, user_namespaces(7).
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    own = IdMap(uids=((0, uid, 1),), gids=((0, gid, 1),))
    own.write(os.getpid())


class _Mapper:
    """A child forked *before* we enter the namespace: newuidmap works from outside only."""

    def __init__(self, commands: tuple[tuple[str, ...], ...]) -> None:
        self._go_read, self._go = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                os.close(self._go)
                if os.read(self._go_read, 1):
                    status = _run_all(commands)
            finally:
                os._exit(status)
        os.close(self._go_read)

    def __call__(self) -> bool:
        """Map now; whether it worked."""
        os.write(self._go, b"1")
        os.close(self._go)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1]) == 0


def _run_all(commands: tuple[tuple[str, ...], ...]) -> int:
    for command in commands:
        if subprocess.run(command, stdin=subprocess.DEVNULL, timeout=10, check=False).returncode != 0:
            return 1
    return 0


def _prepare_mapper(uid: int, gid: int, uids: tuple[int, int] | None, gids: tuple[int, int] | None) -> _Mapper | None:
    newuidmap, newgidmap = shutil.which("newuidmap"), shutil.which("newgidmap")
    if newuidmap is None or newgidmap is None or uids is None or gids is None:
        return None
    pid = str(os.getpid())
    extra = str(min(uids[1], gids[1], RANGE - 1))
    return _Mapper(
        (
            (newgidmap, pid, "0", str(gid), "1", "1", str(gids[0]), extra),
            (newuidmap, pid, "0", str(uid), "1", "1", str(uids[0]), extra),
        )
    )
