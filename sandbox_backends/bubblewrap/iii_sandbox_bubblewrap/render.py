"""From a decision to bwrap's command line: pure, and golden-tested on the whole of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from iii_sandbox_bubblewrap.keeper.boot import AGENT, FIRST_FD, ROOT, SHOWN

if TYPE_CHECKING:
    from iii_core.sandbox.port import Mount

AGENT_INSIDE = "/run/iii/agent"
INFO_FD, LINK_FD, SECCOMP_FD = FIRST_FD, FIRST_FD + 1, FIRST_FD + 2
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
RANGED_CAPABILITIES = ("CAP_SETUID", "CAP_SETGID", "CAP_KILL")


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """What varies between two boots.

    Attributes:
        hostname: the sandbox's.
        tmpfs_bytes: how big /tmp, /run and /dev/shm may each become.
        ranged: the agent may switch to other users of the sandbox.
        hidden: files below /proc that read as empty.
        mounts: folders of the machine; the keeper has each of them ready by its number.
        gate: bwrap is in the network namespace of a gate already (`iii_sandbox_gate`).
    """

    hostname: str
    tmpfs_bytes: int
    ranged: bool
    hidden: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = ()
    gate: bool = False


def render_argv(boot: Boot) -> tuple[str, ...]:
    """bwrap's arguments, its own name first.

    bwrap is root of a user namespace of the sandbox's own already (`iii_sandbox_bubblewrap.keeper`), so it makes none.
    The agent keeps the rights to act as, and to signal, the sandbox's other users where there are any; nobody else has
    any. /proc is read-only as a whole: some of it is the machine's own (modes of files, where root inside is root
    outside), and through some of it a program could have the agent killed first (``oom_score_adj``).
    """
    capabilities = [("--cap-add", name) for name in RANGED_CAPABILITIES] if boot.ranged else []
    options: list[tuple[str, ...]] = [
        ("--unshare-ipc",),
        ("--unshare-pid",),
        *(() if boot.gate else (("--unshare-net",),)),
        ("--unshare-uts",),
        ("--unshare-cgroup-try",),
        ("--die-with-parent",),
        ("--new-session",),
        ("--as-pid-1",),
        ("--cap-drop", "ALL"),
        *capabilities,
        ("--hostname", boot.hostname),
        ("--clearenv",),
        ("--setenv", "PATH", PATH),
        ("--bind", ROOT, "/"),
        ("--proc", "/proc"),
        *(("--ro-bind", "/dev/null", path) for path in boot.hidden),
        ("--remount-ro", "/proc"),
        ("--dev", "/dev"),
        ("--size", str(boot.tmpfs_bytes), "--perms", "1777", "--tmpfs", "/dev/shm"),  # noqa: S108
        ("--remount-ro", "/dev"),  # it has no size of its own
        ("--size", str(boot.tmpfs_bytes), "--perms", "1777", "--tmpfs", "/tmp"),  # noqa: S108 - the sandbox's own
        ("--size", str(boot.tmpfs_bytes), "--perms", "0755", "--tmpfs", "/run"),
        *(
            ("--bind" if mount.writable else "--ro-bind", f"{SHOWN}/{number}", mount.target)
            for number, mount in enumerate(boot.mounts)
        ),
        ("--ro-bind", AGENT, AGENT_INSIDE),
        ("--chdir", "/"),
        ("--info-fd", str(INFO_FD)),
        ("--seccomp", str(SECCOMP_FD)),
        ("--", AGENT_INSIDE, "--fd", str(LINK_FD)),
    ]
    return ("bwrap", *(word for option in options for word in option))
