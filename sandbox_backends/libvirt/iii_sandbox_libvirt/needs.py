"""What egress and mounts need of this machine, and what is missing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from iii_sandbox_gate.needs import find_lack as find_gate_lack

from iii_core.sandbox.port import Capability, Lack

if TYPE_CHECKING:
    from collections.abc import Mapping

VIRTIOFSD: Final = "/usr/lib/qemu/virtiofsd"
"""QEMU's own (up to 7.2): the later one, written in Rust, is another program."""
_LEAST_KERNEL: Final = (5, 12)
_OTHERWISE: Final = "or choose the bubblewrap backend"


def find_lacks(environ: Mapping[str, str]) -> dict[Capability, Lack]:
    """What this backend cannot do here, and why; cheap."""
    lacks = {Capability.EGRESS: find_gate_lack(environ), Capability.MOUNTS: find_mounts_lack()}
    return {capability: lack for capability, lack in lacks.items() if lack is not None}


def find_mounts_lack() -> Lack | None:
    """What keeps this user's guests from seeing folders of this machine; cheap."""
    if os.geteuid() != 0 or not _in_first_user_namespace():
        return Lack("only root of the machine can show folders to a guest", f"run iii as root, {_OTHERWISE}")
    if shutil.which(VIRTIOFSD) is None:
        return Lack(f"there is no {VIRTIOFSD}", f"apt install qemu-system-common (Debian 12), {_OTHERWISE}")
    if _kernel() < _LEAST_KERNEL:
        return Lack("it takes Linux 5.12 or later", f"update the kernel, {_OTHERWISE}")
    return None


def _in_first_user_namespace() -> bool:
    return Path("/proc/self/uid_map").read_text(encoding="ascii").split() == ["0", "0", "4294967295"]


def _kernel() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(filter(str.isdecimal, minor)))
