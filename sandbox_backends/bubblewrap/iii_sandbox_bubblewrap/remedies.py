"""What usually is behind a failure, and the command that puts it right."""

from __future__ import annotations

import re
from pathlib import Path

from iii_core.sandbox.mounts import TARGET_REMEDY, TARGET_TAKEN

_MORE_NAMESPACES = "sysctl user.max_user_namespaces=15000"

REMEDIES: tuple[tuple[str, str], ...] = (
    (TARGET_TAKEN, TARGET_REMEDY),
    (
        r"/disk: (wrong fs type|can't read superblock)",
        "its disk may be damaged: remove the worker and add it again",
    ),
    (
        r"mount bind on /: Invalid argument",
        "iii runs in a chroot whose root is no mount point: before entering it, as root: mount --bind FOLDER FOLDER",
    ),
    (r"unknown filesystem type 'squashfs'", "as root: modprobe squashfs"),
    (
        r"loop device|mount failed: Operation not permitted",
        "as root: modprobe loop; in a container, /dev/loop-control must be there and mounting be allowed",
    ),
    (r"squashfuse is not installed", "as root: apt install squashfuse"),
    (r"/dev/fuse|fuse device|fuse: ", "as root: modprobe fuse && chmod 666 /dev/fuse"),
    (r"mount overlay .*: No such device", "as root: modprobe overlay"),
    (
        r"mount overlay .*: Operation not permitted",
        "an ordinary user may mount overlays since Linux 5.11: update the kernel, or run iii as root",
    ),
    (
        r"mount overlay .*: Invalid argument",
        "writable layers must be on a file system that overlayfs can write to, such as ext4, xfs or btrfs; "
        "move the project there",
    ),
    (
        r"rules of the sandbox's network are refused|nft.* timed out",
        "as root: modprobe nft_ct nft_reject_inet; in a container, nftables must be allowed",
    ),
    (
        r"uplink of its network did not come up|set-up failed: timed out",
        "`iii doctor` tries it and says what is missing; the sandbox's console has slirp4netns' own words",
    ),
    (r"[Uu]nknown option --(size|perms)", "bubblewrap 0.7 or later is needed: as root: apt install bubblewrap"),
    (r"unshare: No space left on device", f"as root: {_MORE_NAMESPACES}"),
    (r"No space left on device", "free some space, for instance with `iii worker remove NAME`"),
)
"""(what a message says, what to do)"""

_SWITCHES = (
    ("sys/user/max_user_namespaces", "0", _MORE_NAMESPACES),
    ("sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    (
        "sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile that allows userns",
    ),
)
"""(file below /proc, the value that forbids user namespaces, what to do)"""


def remedy(message: str) -> str | None:
    """What to do about a message of mount, bwrap or the kernel; None if it is none of the usual ones."""
    return next((hint for pattern, hint in REMEDIES if re.search(pattern, message)), None)


def namespace_remedy(proc: Path = Path("/proc")) -> str:
    """What to do where namespaces cannot be made."""
    for name, value, hint in _SWITCHES:
        try:
            found = (proc / name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if found == value:
            return f"as root: {hint}"
    return "inside a container, it must be allowed to create user namespaces and to mount (seccomp, AppArmor)"
