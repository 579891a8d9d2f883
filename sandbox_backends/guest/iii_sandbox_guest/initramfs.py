"""The initramfs: the agent as ``/init``, and the modules that bring up the disks and the link.

The format is "newc" of cpio (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst). What comes out
depends on nothing but what goes in: no times, owners, inode numbers of this machine.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from iii_sandbox_guest.modules import Module

_ALIGN: Final = 4


def write_cpio(entries: Sequence[tuple[str, int, bytes, tuple[int, int]]]) -> bytes:
    """A newc archive of (path, mode with file type, content, (major, minor) of a device node) in that order."""
    archive = bytearray()
    for number, (path, mode, content, device) in enumerate([*entries, ("TRAILER!!!", 0, b"", (0, 0))], start=1):
        name = path.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (number, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(name), 0)
        archive += b"070701" + b"".join(b"%08x" % field for field in fields) + name
        archive += bytes(-len(archive) % _ALIGN)
        archive += content
        archive += bytes(-len(archive) % _ALIGN)
    return bytes(archive)


def render_initramfs(agent: bytes, modules: Sequence[tuple[str, bytes]]) -> bytes:
    """The archive. ``modules`` are file names and contents, in the order in which the agent is to load them."""
    folder, file = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644
    none = (0, 0)
    order = "".join(f"{name}\n" for name, _ in modules).encode()
    return write_cpio(
        [
            *((path, folder, b"", none) for path in ("dev", "modules", "proc", "sys")),
            ("dev/console", stat.S_IFCHR | 0o600, b"", (5, 1)),
            ("init", stat.S_IFREG | 0o755, agent, none),
            ("modules/order", file, order, none),
            *((f"modules/{name}", file, content, none) for name, content in modules),
        ]
    )


def build_initramfs(cache: Path, agent: Path, modules: Sequence[Module]) -> Path:
    """The initramfs as a file below ``cache``, named by the hash of its content; made unless it is there.

    Safe while others do the same. Raises OSError if the cache cannot be written, `BackendUnavailable` if a module
    cannot be read.
    """
    data = render_initramfs(agent.read_bytes(), [(f"{module.name}.ko", module.read()) for module in modules])
    path = cache / f"initramfs-{hashlib.sha256(data).hexdigest()[:32]}.cpio"
    if path.is_file() and path.stat().st_size == len(data):
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=cache, prefix="initramfs-", suffix=".new", delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).chmod(0o644)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    return path
