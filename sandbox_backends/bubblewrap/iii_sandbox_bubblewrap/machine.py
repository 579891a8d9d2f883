"""Launches namespace sandboxes: the `Launcher` of this backend."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import trio
from iii_sandbox_gate.plan import check_egress, egress_notes, plan_gate

from iii_core.errors import SandboxError, UnsupportedOperation
from iii_core.sandbox.host_processes import ProcessId
from iii_core.sandbox.launcher import Launcher, LaunchFailed
from iii_core.sandbox.mounts import check_mounts, resolved_source
from iii_core.sandbox.port import Capability
from iii_core.sandbox.process_boot import KILL_TIMEOUT
from iii_sandbox_bubblewrap import policy
from iii_sandbox_bubblewrap.boots import BootTable, BubblewrapBoot
from iii_sandbox_bubblewrap.cgroups import Cgroups, find_parents
from iii_sandbox_bubblewrap.keeper.identity import in_first_user_namespace
from iii_sandbox_bubblewrap.keeper_client import KeeperGone, open_keeper
from iii_sandbox_bubblewrap.remedies import remedy
from iii_sandbox_bubblewrap.render import Boot, render_argv

if TYPE_CHECKING:
    from collections.abc import Generator

    from iii_sandbox_gate.plan import GatePlan

    from iii_core.records import OpenContext
    from iii_core.sandbox.console import Console
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

WRITABLE_MOUNTS = "it may write to a mounted folder only where that id, or everybody, may"


class BubblewrapLauncher(Launcher):
    """See `Launcher`. A dead keeper is replaced when next needed."""

    name: ClassVar[str] = "bubblewrap"
    capabilities: ClassVar[frozenset[Capability]] = policy.ALL_CAPABILITIES  # `check` knows what this machine has

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
        self._cgroups = _own_cgroups()

    def check(self, spec: SandboxSpec) -> None:
        """See `Launcher.check`."""
        if spec.limits.disk_mib is not None and (self._settings.unprivileged or not policy.may_mount()):
            raise UnsupportedOperation(
                "the size of a disk can be limited only where iii may mount file systems: as root of this machine",
                hint="leave `disk` out of the worker's sandbox settings, or choose a virtual machine backend",
                details={"backend": self.name, "capability": Capability.DISK_LIMIT.value},
            )
        if spec.mounts and self._settings.unprivileged and policy.may_mount():
            raise UnsupportedOperation(
                "folders cannot be shown where root of a sandbox is root of this machine",
                hint="leave out the backend's setting `unprivileged`, or run iii as an ordinary user",
                details={"backend": self.name, "capability": Capability.MOUNTS.value},
            )
        if spec.egress is not None:
            check_egress(spec.egress, self.name, self._context.environ)
        self._check_mounts(spec)

    def _check_mounts(self, spec: SandboxSpec) -> None:
        context = self._context
        check_mounts(
            spec.mounts, (context.home, context.state_dir, context.runtime_dir, spec.writable_dir, spec.console)
        )

    async def prepare(self, spec: SandboxSpec) -> None:
        """See `Launcher.prepare`: makes the disk of a layer that has a size of its own."""
        from iii_sandbox_guest.disk import create_data_disk

        await super().prepare(spec)
        if spec.limits.disk_mib is None:
            return
        if (spec.writable_dir / "upper").exists():
            raise SandboxError(
                f"the writable layer of sandbox {spec.id!r} was made without a size",
                hint="take `disk` out again, or remove the worker and add it, which loses what it wrote",
                details={"sandbox": spec.id},
            )
        await create_data_disk(spec.writable_dir / policy.DATA_DISK, spec.limits.disk_mib << 20)

    async def _open_keeper(self) -> KeeperClient:
        """The keeper, started if there is none. Raises `BackendUnavailable`."""
        async with self._opening:
            while self._keeper is None or self._keeper.gone:
                await self._boots.wait_none()  # what the last one left is buried before its images are used again
                opened: KeeperClient = await self._nursery.start(self._keep)
                self._keeper = opened
            return self._keeper

    async def _keep(self, *, task_status: trio.TaskStatus[KeeperClient] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            async with open_keeper(self._settings, self._context, self._boots.event) as keeper:
                task_status.started(keeper)
                await keeper.wait_gone()
        finally:
            self._boots.bury_all()

    async def launch(self, spec: SandboxSpec, console: Console) -> BubblewrapBoot:
        """See `Launcher.launch`. Returns when the agent has been executed."""
        self._check_mounts(spec)  # again: links may lead elsewhere by now
        boot = await self._begin(await self._open_keeper(), spec, console)
        running = False
        try:
            running = await boot.wait_running()
        finally:
            if not running:
                boot.link.close()
                with trio.move_on_after(2 * KILL_TIMEOUT, shield=True):
                    await boot.kill()
        if not running:
            raise LaunchFailed(boot.exit)
        return boot

    async def _begin(self, keeper: KeeperClient, spec: SandboxSpec, console: Console) -> BubblewrapBoot:
        """Start bwrap for a sandbox. When cancelled, nothing was started.

        Raises:
            SandboxError: the keeper refused (the image cannot be mounted, say).
        """
        plan = None if spec.egress is None else plan_gate(spec.egress, self._context.environ)
        groups = self._cgroups.create(spec.id, spec.limits)
        ours, theirs = socket.socketpair()
        boot = BubblewrapBoot(keeper.next_id(), ours, keeper, tidy=partial(self._cgroups.remove, groups))
        self._boots.add(boot)
        try:
            with theirs, _in_memory(self._program) as program:
                async with console.pipe(self._nursery) as pipe:
                    answer = await keeper.request(
                        "boot",
                        (pipe, theirs.fileno(), program),
                        number=boot.number,
                        bwrap=self._bwrap,
                        argv=self._render(spec, keeper),
                        agent=str(self._agent),
                        image=str(spec.root.path),
                        writable=str(spec.writable_dir),
                        disk=str(disk) if (disk := spec.writable_dir / policy.DATA_DISK).exists() else None,
                        hosts=policy.HOSTS,
                        cgroups=[str(group) for group in groups],
                        pids=spec.limits.pids if "pids" not in self._cgroups.available else None,
                        shown=[str(resolved_source(mount)) for mount in spec.mounts],
                        targets=[mount.target for mount in spec.mounts],
                        **_gate_fields(plan),
                    )
        except KeeperGone:
            ours.close()
            with trio.CancelScope(shield=True):
                await boot.ended.wait()  # it is buried with all others
            raise
        except BaseException:
            ours.close()
            self._boots.forget(boot)
            raise
        keeper.root = answer["root"][0]  # it may have found that images cannot be given other ids
        return boot

    def _render(self, spec: SandboxSpec, keeper: KeeperClient) -> tuple[str, ...]:
        boot = Boot(
            hostname=spec.hostname,
            tmpfs_bytes=policy.tmpfs_bytes(spec.limits),
            ranged=keeper.ranged,
            hidden=policy.existing(policy.PROC_HIDDEN),
            mounts=spec.mounts,
            gate=spec.egress is not None,
        )
        return render_argv(boot)

    async def remove(self, folder: Path) -> None:
        """See `Launcher.remove`: with the sandboxes' own rights. When cancelled, deletion goes on unseen."""
        await (await self._open_keeper()).request("remove", shield=False, path=str(folder))

    async def release(self, image: Path) -> None:
        """See `Launcher.release`: unmounts it."""
        if self._keeper is not None:
            with suppress(KeeperGone):  # its mounts go with it
                await self._keeper.request("release", image=str(image))

    def remedy(self, said: str) -> str | None:
        """See `Launcher.remedy`."""
        return remedy(said)

    def notes(self, spec: SandboxSpec) -> tuple[str, ...]:
        """See `Launcher.notes`."""
        found = list(egress_notes(spec.egress))
        if self.single_user(spec):
            found.append(ONE_USER)
        if self._root_is_root():
            found.append(SHARED_ROOT)
        elif self._keeper is not None and self._keeper.privileged and any(mount.writable for mount in spec.mounts):
            found.append(f"root of the sandbox is user id {self._keeper.root} of this machine: {WRITABLE_MOUNTS}")
        return tuple(found)

    def single_user(self, spec: SandboxSpec) -> bool:
        """See `Launcher.single_user`."""
        return self._keeper is not None and not self._keeper.ranged

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
            if value is not None and controller not in self._cgroups.available and not self._kept_otherwise(controller)
        )

    def _kept_otherwise(self, controller: str) -> bool:
        """RLIMIT_NPROC counts per user *namespace* since Linux 5.14, and each sandbox has its own; root is exempt."""
        return controller == "pids" and not self._root_is_root() and _kernel() >= (5, 14)

    def _root_is_root(self) -> bool:
        """Whether uid 0 of the sandboxes is uid 0 of the machine."""
        if self._keeper is None or not in_first_user_namespace():
            return False
        return (self._keeper.root if self._keeper.privileged else os.getuid()) == 0


def _gate_fields(plan: GatePlan | None) -> dict[str, Any]:
    """What the keeper is told of a gate."""
    if plan is None:
        return {"gate": None, "uplink": ()}
    gate = {"nft": plan.nft, "rules": plan.rules, "resolv_conf": plan.resolv_conf}
    return {"gate": gate, "uplink": plan.uplink}


def _kernel() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(filter(str.isdecimal, minor)))


def _own_cgroups() -> Cgroups:
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


@contextmanager
def _in_memory(data: bytes) -> Generator[int]:
    """A descriptor to read ``data`` from."""
    descriptor = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, data)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)
