"""What usually is behind a boot that fails, and what puts it right."""

from __future__ import annotations

import re
from typing import Final

REMEDIES: Final[tuple[tuple[str, str], ...]] = (
    (r"misunderstood", "a newer cloud-hypervisor is needed"),
    (
        r"(?i)landlock",
        "this machine's kernel may be too old for Landlock: set `landlock: false` of the cloud-hypervisor backend to "
        "do without",
    ),
    (r"(?i)seccomp", "set `seccomp: false` of the cloud-hypervisor backend, and report it: a system call is missing"),
    (r"/dev/kvm|(?i:\bkvm\b)", "/dev/kvm must be there, be yours to open, and be able to run a guest"),
    (r"(?i)lock", "another program uses the sandbox's disk"),
    (r"No space left on device", "free some space, for instance with `iii worker remove NAME`"),
)
"""(what the VMM says, what to do)"""


def remedy(said: str) -> str | None:
    """What to do about a message of the VMM; None if it is none of the usual ones."""
    return next((hint for pattern, hint in REMEDIES if re.search(pattern, said)), None)
