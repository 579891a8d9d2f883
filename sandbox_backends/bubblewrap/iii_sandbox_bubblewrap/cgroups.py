"""Resource limits through control groups, version 1 or 2, where this process may write them (``cgroups(7)``).

A group is named ``iii.<pid>.<start time>.<pid namespace>.<sandbox>`` after the process that made it, so the next one
can tell and remove what a killed predecessor left, without any record of its own. Process ids mean something in their
namespace alone; another container that shares this hierarchy tidies up after itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from iii_core.sandbox.host_processes import ProcessId

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from iii_core.sandbox.port import Limits

CONTROLLERS = ("cpu", "memory", "pids")
_PREFIX = "iii."
_PERIOD_US = 100_000
_OPTIONAL = ("memory.swap.max", "memory.memsw.limit_in_bytes")  # absent where the kernel does not account for swap


@dataclass(frozen=True, slots=True)
class Parent:
    """A folder that groups may be made in. ``unified`` says version 2."""

    folder: Path
    unified: bool


class Cgroups:
    """The control groups of one process's sandboxes."""

    def __init__(self, parents: Mapping[str, Parent], owner: ProcessId) -> None:
        self._parents = parents
        namespace = Path("/proc/self/ns/pid").stat().st_ino
        self._prefix = f"{_PREFIX}{owner.pid}.{owner.started}.{namespace}."
        self._namespace = str(namespace)

    @property
    def available(self) -> frozenset[str]:
        """The controllers that can be used here."""
        return frozenset(self._parents)

    def create(self, sandbox: str, limits: Limits) -> tuple[Path, ...]:
        """Make the groups that ``limits`` need; a process joins each. Raises ``OSError``, and leaves nothing then."""
        wanted: dict[Path, dict[str, str]] = {}
        for controller, parent in self._parents.items():
            values = _values(controller, limits, unified=parent.unified)
            if values:
                folder = parent.folder / f"{self._prefix}{sandbox}"
                wanted.setdefault(folder, {}).update(values)
        try:
            for folder, values in wanted.items():
                folder.mkdir(exist_ok=True)
                for name, value in values.items():
                    _write(folder / name, value)
        except OSError:
            self.remove(wanted)
            raise
        return tuple(wanted)

    def remove(self, groups: Iterable[Path]) -> bool:
        """Remove groups whose processes have ended; False if one is still busy."""
        return all(list(map(_remove, groups)))

    def sweep(self) -> None:
        """Kill and remove what processes that no longer live have left."""
        for folder in {parent.folder for parent in self._parents.values()}:
            for group in folder.glob(f"{_PREFIX}*"):
                _, pid, started, namespace, *_ = [*group.name.split("."), "", "", ""]
                if namespace != self._namespace or not pid.isdecimal() or not started.isdecimal():
                    continue
                if not ProcessId(int(pid), int(started)).alive():
                    _kill_all(group)
                    _remove(group)


def _values(controller: str, limits: Limits, *, unified: bool) -> dict[str, str]:
    """The files to write for one controller, in order; empty if it has nothing to limit."""
    if controller == "cpu" and limits.cpus is not None:
        quota = str(round(limits.cpus * _PERIOD_US))
        if unified:
            return {"cpu.max": f"{quota} {_PERIOD_US}"}
        return {"cpu.cfs_period_us": str(_PERIOD_US), "cpu.cfs_quota_us": quota}
    if controller == "memory" and limits.memory_mib is not None:
        size = str(limits.memory_mib * 1024 * 1024)
        if unified:
            return {"memory.max": size, "memory.swap.max": "0"}
        return {"memory.limit_in_bytes": size, "memory.memsw.limit_in_bytes": size}
    if controller == "pids" and limits.pids is not None:
        return {"pids.max": str(limits.pids)}
    return {}


def _write(file: Path, value: str) -> None:
    if file.name in _OPTIONAL and not file.exists():
        return
    file.write_text(value, encoding="ascii")


def _remove(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def _kill_all(group: Path) -> None:
    with contextlib.suppress(OSError):
        for pid in (group / "cgroup.procs").read_text(encoding="ascii").split():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(int(pid), signal.SIGKILL)


def find_parents(mountinfo: str, own: str) -> dict[str, Parent]:
    """Where this process may make groups, by controller.

    Args:
        mountinfo: ``/proc/self/mountinfo``.
        own: ``/proc/self/cgroup``.
    """
    places = dict(_own_groups(own))
    found: dict[str, Parent] = {}
    for root, mount_point, kind, options in _cgroup_mounts(mountinfo):
        if kind == "cgroup":
            for controller in set(options) & set(CONTROLLERS) & set(places):
                folder = _inside(mount_point, root, places[controller])
                if _may_make_groups(folder):
                    found.setdefault(controller, Parent(folder, unified=False))
        elif "" in places:
            found |= {
                controller: Parent(folder, unified=True)
                for controller, folder in _unified_parents(mount_point, _inside(mount_point, root, places[""])).items()
                if controller not in found
            }
    return found


def _own_groups(own: str) -> Iterable[tuple[str, str]]:
    """(controller, path) of each line ``id:controllers:path``; the controller of version 2 is ``""``."""
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            yield controller, path


def _cgroup_mounts(mountinfo: str) -> Iterable[tuple[str, Path, str, list[str]]]:
    """(root, mount point, type, super options) of the cgroup file systems (``proc_pid_mountinfo(5)``)."""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = [*right.split(" "), "", "", ""][:3]
        if kind in ("cgroup", "cgroup2"):
            fields = left.split(" ")
            yield fields[3], Path(fields[4]), kind, options.split(",")


def _inside(mount_point: Path, root: str, path: str) -> Path:
    """Our group's folder, where only the part below ``root`` of the hierarchy is mounted."""
    relative = os.path.relpath(path, root)
    return mount_point if relative.startswith("..") else mount_point / relative


def _may_make_groups(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK) and os.access(folder / "cgroup.procs", os.W_OK)


def _unified_parents(mount_point: Path, own: Path) -> dict[str, Path]:
    """The nearest group upwards that we may write and that hands controllers on.

    A group that has processes cannot hand controllers on ("no internal processes"), so ours rarely does but an
    ancestor may; and moving a process needs write access to the common ancestor, which that ancestor is.
    """
    folder = own
    while folder == mount_point or mount_point in folder.parents:
        if _may_make_groups(folder):
            handed_on = (folder / "cgroup.subtree_control").read_text(encoding="ascii").split()
            usable = [controller for controller in CONTROLLERS if controller in handed_on]
            if usable:
                return dict.fromkeys(usable, folder)
        folder = folder.parent
    return {}
