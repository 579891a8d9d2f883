"""What gates need of this machine, and what is missing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from iii_core.sandbox.port import Lack

if TYPE_CHECKING:
    from collections.abc import Mapping

TUN: Final = Path("/dev/net/tun")
_SYSTEM_PROGRAMS: Final = "/usr/sbin:/sbin"
"""Not on the PATH of ordinary users everywhere."""


def find_slirp(environ: Mapping[str, str]) -> str | None:
    """slirp4netns."""
    return shutil.which("slirp4netns", path=environ.get("PATH"))


def find_nft(environ: Mapping[str, str]) -> str | None:
    """nft, which every user may run: rules of one's own namespaces need no more."""
    return shutil.which("nft", path=f"{environ.get('PATH', os.defpath)}:{_SYSTEM_PROGRAMS}")


def find_lack(environ: Mapping[str, str], tun: Path = TUN) -> Lack | None:
    """What keeps this user from having a gate, as far as it can be seen without making one; cheap."""
    if find_slirp(environ) is None:
        return Lack("slirp4netns is not installed", "apt install slirp4netns")
    if find_nft(environ) is None:
        return Lack("nft is not installed", "apt install nftables")
    if not tun.exists():
        return Lack(f"there is no {tun}", "as root: modprobe tun")
    if not os.access(tun, os.R_OK | os.W_OK):
        return Lack(f"{tun} may not be opened", f"as root: chmod 666 {tun}")
    return None
