"""Bind mounts in the sandbox host's own mount namespace (mount_namespaces(7))."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

from iii_core.errors import SandboxError

_MS_BIND: Final = 4096
_MNT_DETACH: Final = 2


def have_own() -> bool:
    """Whether this process sees other mounts than the one that started it."""
    try:
        return Path("/proc/self/ns/mnt").readlink() != Path(f"/proc/{os.getppid()}/ns/mnt").readlink()
    except OSError:
        return False


def bind(source: Path, target: Path) -> None:
    """Show ``source`` at ``target`` too. Raises `SandboxError`."""
    if _libc().mount(os.fsencode(source), os.fsencode(target), None, _MS_BIND, None) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise SandboxError(f"cannot show {source} to QEMU: {reason}", details={"path": str(source)})


def unbind(target: Path) -> None:
    """Undo `bind`; does nothing where there is no mount."""
    _libc().umount2(os.fsencode(target), _MNT_DETACH)


def below(folder: Path) -> list[Path]:
    """The mount points in ``folder``, itself included."""
    table = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    points = (Path(line.split()[4]) for line in table)
    return [point for point in points if point.is_relative_to(folder)]


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
