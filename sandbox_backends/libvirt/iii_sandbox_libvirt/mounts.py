"""Bind mounts in the sandbox host's own mount namespace (mount_namespaces(7))."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from iii_core.errors import SandboxError
from iii_core.sandbox import linux


def have_own() -> bool:
    """Whether this process sees other mounts than the one that started it."""
    try:
        return Path("/proc/self/ns/mnt").readlink() != Path(f"/proc/{os.getppid()}/ns/mnt").readlink()
    except OSError:
        return False


def bind(source: Path, target: Path) -> None:
    """Show ``source`` at ``target`` too. Raises `SandboxError`."""
    try:
        linux.mount(str(source), str(target), None, linux.MS_BIND)
    except OSError as error:
        raise SandboxError(
            f"cannot show {source} to QEMU: {os.strerror(error.errno or 0)}", details={"path": str(source)}
        ) from error


def unbind(target: Path) -> None:
    """Undo `bind`; does nothing where there is no mount."""
    with suppress(OSError):
        linux.unmount(str(target))


def below(folder: Path) -> list[Path]:
    """The mount points in ``folder``, itself included."""
    table = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    points = (Path(line.split()[4]) for line in table)
    return [point for point in points if point.is_relative_to(folder)]
