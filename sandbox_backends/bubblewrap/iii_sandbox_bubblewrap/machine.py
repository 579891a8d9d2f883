"""What all sandboxes of one driver share: the keeper, the programs, the control groups."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import trio

from iii_core.errors import SandboxError
from iii_core.sandbox.host_processes import ProcessId
from iii_sandbox_bubblewrap import policy
from iii_sandbox_bubblewrap.boots import BootTable, RunningBoot
from iii_sandbox_bubblewrap.cgroups import Cgroups, find_parents
from iii_sandbox_bubblewrap.keeper.identity import in_first_user_namespace
from iii_sandbox_bubblewrap.keeper_client import open_keeper
from iii_sandbox_bubblewrap.render import Boot, render_argv

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from iii_core.records import OpenContext
    from iii_core.sandbox.port import SandboxSpec
    from iii_sandbox_bubblewrap.keeper_client import KeeperClient
    from iii_sandbox_bubblewrap.policy import Settings


ONE_USER = (
    "only user id 0 exists inside: images run as root of the sandbox whatever their USER is "
    "(a range in /etc/subuid and /etc/subgid and the package uidmap would change that)"
)
SHARED_ROOT = (
    "root of the sandbox is root of this machine, without its capabilities: run iii as an ordinary user, "
    "or on Linux 6.2 or later, for a wall more"
)


class Machine:
    """Boots, kills and deletes. Methods may be called concurrently; a dead keeper is replaced when next needed."""

    def __init__(
        self,
        settings: Settings,
        context: OpenContext,
        nursery: trio.Nursery,
        *,
        agent: Path,
        bwrap: str,
        program: bytes,
    ) -> None:
        self._settings = settings
        self._context = context
        self._nursery = nursery
        self._agent = agent
        self._bwrap = bwrap
        self._program = program
        self._boots = BootTable()
        self._keeper: KeeperClient | None = None
        self._opening = trio.Lock()
        self.cgroups = _own_cgroups()

    async def keeper(self) -> KeeperClient:
        """The keeper, started if there is none. Raises `BackendUnavailable`."""
        async with self._opening:
            if self._keeper is None or self._keeper.gone:
                await self._boots.wait_none()  # what the last one left is buried before its images are used again
                opened: KeeperClient = await self._nursery.start(self._keep)
                self._keeper = opened
            return self._keeper

    async def _keep(self, *, task_status: trio.TaskStatus[KeeperClient] = trio.TASK_STATUS_IGNORED) -> None:
        async with open_keeper(self._settings, self._context, self._boots.event) as keeper:
            task_status.started(keeper)
            await keeper.wait_gone()
        await self._boots.bury_all()

    async def boot(self, spec: SandboxSpec, groups: Sequence[Path], console: int) -> tuple[RunningBoot, socket.socket]:
        """Start bwrap for a sandbox; the boot and our end of its link. When cancelled, nothing was started.

        ``console`` is a descriptor for its messages; it stays the caller's.

        Raises:
            SandboxError: the keeper refused (the image cannot be mounted, say).
        """
        keeper = await self.keeper()
        program = _in_memory(self._program)
        ours, theirs = socket.socketpair()
        boot = self._boots.begin(keeper.next_id())
        try:
            with theirs:
                answer = await keeper.request(
                    "boot",
                    (console, theirs.fileno(), program),
                    number=boot.number,
                    bwrap=self._bwrap,
                    argv=self._render(spec, keeper),
                    agent=str(self._agent),
                    image=str(spec.root.path),
                    writable=str(spec.writable_dir),
                    hosts=policy.HOSTS,
                    cgroups=[str(group) for group in groups],
                    pids=spec.limits.pids if "pids" not in self.cgroups.available else None,
                )
        except BaseException:
            ours.close()
            self._boots.forget(boot)
            raise
        finally:
            os.close(program)
        keeper.root = answer["root"][0]  # it may have found that images cannot be given other ids
        return boot, ours

    def _render(self, spec: SandboxSpec, keeper: KeeperClient) -> tuple[str, ...]:
        boot = Boot(
            hostname=spec.hostname,
            tmpfs_bytes=policy.tmpfs_bytes(spec.limits),
            ranged=keeper.ranged,
            hidden=policy.existing(policy.PROC_HIDDEN),
            frozen=policy.existing(policy.PROC_FROZEN),
        )
        return render_argv(boot)

    async def kill(self, boot: RunningBoot) -> None:
        """Kill a boot and wait until nothing of it is left, also when cancelled: at most `policy.KILL_TIMEOUT`.

        Raises:
            SandboxError: it did not end in time (a process hangs in the kernel).
        """
        keeper = self._keeper
        if boot.ended.is_set() or keeper is None:
            return
        if not keeper.gone:
            try:
                await keeper.request("kill", boot=boot.number)
            except SandboxError:
                if not keeper.gone:
                    raise
        with trio.move_on_after(policy.KILL_TIMEOUT, shield=True):
            await boot.ended.wait()
            return
        raise SandboxError(
            f"a sandbox did not end within {policy.KILL_TIMEOUT:g} s of SIGKILL",
            hint="a process in it hangs in the kernel; is its disk or network file system stuck?",
        )

    async def remove_tree(self, path: Path) -> None:
        """Delete a writable layer with the sandboxes' own rights. When cancelled, deletion goes on unseen."""
        await (await self.keeper()).request("remove", shield=False, path=str(path))

    async def release_image(self, image: Path) -> None:
        """Unmount an image that no sandbox uses any more."""
        if self._keeper is not None and not self._keeper.gone:
            try:
                await self._keeper.request("release", image=str(image))
            except SandboxError:
                if not self._keeper.gone:  # its mounts go with it
                    raise

    def notes(self) -> tuple[str, ...]:
        """What users should know about sandboxes of this machine."""
        found: list[str] = []
        if self._keeper is not None and not self._keeper.ranged:
            found.append(ONE_USER)
        if self._root_is_root():
            found.append(SHARED_ROOT)
        return tuple(found)

    def unenforced(self, spec: SandboxSpec) -> tuple[str, ...]:
        """The limits of ``spec`` that cannot be kept here, in words."""
        limits = (
            ("cpu", "CPU", spec.limits.cpus),
            ("memory", "memory", spec.limits.memory_mib),
            ("pids", "process", spec.limits.pids),
        )
        return tuple(
            f"{name} limit {value:g}: no control group of this machine may be written by this user"
            for controller, name, value in limits
            if value is not None and controller not in self.cgroups.available and not self._kept_otherwise(controller)
        )

    def _kept_otherwise(self, controller: str) -> bool:
        """RLIMIT_NPROC counts per user *namespace* since Linux 5.14, and each sandbox has its own; root is exempt."""
        return controller == "pids" and not self._root_is_root() and _kernel() >= (5, 14)

    def _root_is_root(self) -> bool:
        """Whether uid 0 of the sandboxes is uid 0 of the machine."""
        if self._keeper is None or not in_first_user_namespace():
            return False
        return (self._keeper.root if self._keeper.privileged else os.getuid()) == 0


def _kernel() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(filter(str.isdecimal, minor)))


def _own_cgroups() -> Cgroups:
    from pathlib import Path

    owner = ProcessId.of(os.getpid())
    if owner is None:
        raise SandboxError("/proc is not mounted", hint="mount it: mount -t proc proc /proc")
    groups = Cgroups(
        find_parents(
            Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape"),
            Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="surrogateescape"),
        ),
        owner,
    )
    groups.sweep()
    return groups


def _in_memory(data: bytes) -> int:
    """A descriptor to read ``data`` from."""
    descriptor = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    os.write(descriptor, data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
