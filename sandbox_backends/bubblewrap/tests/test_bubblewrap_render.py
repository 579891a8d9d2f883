"""bwrap's whole command line, for each kind of boot: what is not written here is not given to a sandbox."""

from __future__ import annotations

from pathlib import Path

import pytest
from iii_sandbox_bubblewrap.policy import PROC_HIDDEN, tmpfs_bytes
from iii_sandbox_bubblewrap.render import Boot, render_argv

from iii_core.sandbox.port import Limits, Mount

NAMESPACES = """
bwrap
--unshare-ipc
--unshare-pid
--unshare-net
--unshare-uts
--unshare-cgroup-try
--die-with-parent
--new-session
--as-pid-1
--cap-drop ALL
"""
RANGE = """
--cap-add CAP_SETUID
--cap-add CAP_SETGID
--cap-add CAP_KILL
"""
ROOT = """
--hostname box
--clearenv
--setenv PATH /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
--bind /tmp/root /
--proc /proc
"""
GUARDS = """
--ro-bind /dev/null /proc/kcore
--ro-bind /dev/null /proc/keys
--ro-bind /dev/null /proc/kmsg
--ro-bind /dev/null /proc/kpagecgroup
--ro-bind /dev/null /proc/kpagecount
--ro-bind /dev/null /proc/kpageflags
--ro-bind /dev/null /proc/latency_stats
--ro-bind /dev/null /proc/sched_debug
--ro-bind /dev/null /proc/sysrq-trigger
--ro-bind /dev/null /proc/timer_list
--ro-bind /dev/null /proc/vmcore
"""
REST = """
--remount-ro /proc
--dev /dev
--size {size} --perms 1777 --tmpfs /dev/shm
--remount-ro /dev
--size {size} --perms 1777 --tmpfs /tmp
--size {size} --perms 0755 --tmpfs /run
--ro-bind /tmp/agent /run/iii/agent
--chdir /
--info-fd 10
--seccomp 12
-- /run/iii/agent --fd 11
"""


@pytest.mark.parametrize(
    ("limits", "ranged", "golden"),
    [
        pytest.param(Limits(), True, NAMESPACES + RANGE + ROOT + GUARDS + REST.format(size=512 << 20), id="range"),
        pytest.param(Limits(), False, NAMESPACES + ROOT + GUARDS + REST.format(size=512 << 20), id="one-user"),
        pytest.param(
            Limits(cpus=1, memory_mib=64, pids=32),
            True,
            NAMESPACES + RANGE + ROOT + GUARDS + REST.format(size=32 << 20),
            id="range-limited",
        ),
        pytest.param(
            Limits(cpus=1, memory_mib=64, pids=32),
            False,
            NAMESPACES + ROOT + GUARDS + REST.format(size=32 << 20),
            id="one-user-limited",
        ),
    ],
)
def test_golden(limits: Limits, ranged: bool, golden: str) -> None:
    boot = Boot(hostname="box", tmpfs_bytes=tmpfs_bytes(limits), ranged=ranged, hidden=PROC_HIDDEN)
    assert render_argv(boot) == tuple(golden.split())


def test_mounts() -> None:
    """After what could cover them, and before the agent, which nothing may cover."""
    boot = Boot(
        hostname="box",
        tmpfs_bytes=1 << 20,
        ranged=False,
        mounts=(
            Mount(source=Path("/home/me/a b"), target="/data"),
            Mount(source=Path("/srv"), target="/tmp/srv", writable=True),
        ),
    )
    before, agent, after = REST.format(size=1 << 20).partition("--ro-bind /tmp/agent")
    mounts = "--ro-bind /tmp/shown/0 /data --bind /tmp/shown/1 /tmp/srv "
    assert render_argv(boot) == tuple((NAMESPACES + ROOT + before + mounts + agent + after).split())


def test_a_kernel_without_guarded_files() -> None:
    boot = Boot(hostname="box", tmpfs_bytes=1 << 20, ranged=False)
    assert render_argv(boot) == tuple((NAMESPACES + ROOT + REST.format(size=1 << 20)).split())


@pytest.mark.parametrize(
    ("limits", "mib"), [(Limits(), 512), (Limits(memory_mib=16), 8), (Limits(memory_mib=64_000), 512)]
)
def test_memory_file_systems_are_at_most_half_of_the_memory(limits: Limits, mib: int) -> None:
    assert tmpfs_bytes(limits) == mib << 20
