"""All that a backend gives its VMM to boot the agent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from iii_sandbox_guest.agent_program import agent_path
from iii_sandbox_guest.boot import Needs, render_cmdline
from iii_sandbox_guest.initramfs import build_initramfs
from iii_sandbox_guest.kernel import find_kernel
from iii_sandbox_guest.modules import resolve_modules


@dataclass(frozen=True, slots=True, kw_only=True)
class BootFiles:
    """What to boot.

    Attributes:
        kernel: an uncompressed kernel with a PVH entry, or a bzImage; ``release`` as ``uname -r`` says it.
        initramfs: uncompressed; its name changes with its content.
        cmdline: the kernel's command line.
    """

    kernel: Path
    release: str
    initramfs: Path
    cmdline: str


def prepare_boot(home: Path, *, needs: Needs | None = None, kernel: Path | None = None) -> BootFiles:
    """Find the kernel and make the initramfs, or take it from the cache. Blocking, for some 50 ms: use a thread.

    Args:
        home: ``$III_HOME``; kernels are looked for below ``kernels/``, the initramfs is kept below ``cache/``.
        needs: what the machine is going to have.
        kernel: the configured one, if any (`find_kernel`).

    Safe to call at the same time from several processes. Raises `BackendUnavailable` with what is missing and what to
    do, OSError if the cache cannot be written.
    """
    needs = needs or Needs()
    wanted = needs.modules()
    chosen = find_kernel(home, wanted, configured=kernel)
    initramfs = build_initramfs(home / "cache", agent_path(), resolve_modules(chosen.modules, wanted))
    return BootFiles(kernel=chosen.image, release=chosen.release, initramfs=initramfs, cmdline=render_cmdline(needs))
