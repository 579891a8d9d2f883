"""Which kernel guests boot: one that was configured, one that `iii sandbox setup` fetched, or one of this machine's."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from iii_core.errors import BackendUnavailable
from iii_sandbox_guest.modules import resolve_modules
from iii_sandbox_guest.vmlinux import read_release

BOOT: Final = Path("/boot")
MODULES: Final = Path("/lib/modules")
SETUP_HINT: Final = "fetch a kernel with: iii sandbox setup"
_HEAD: Final = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A kernel that can be booted.

    Attributes:
        release: as ``uname -r`` says it.
        image: what a VMM is given: the kernel uncompressed (``vmlinux``) where there is one, else a bzImage.
        modules: the folder with ``modules.dep``.
    """

    release: str
    image: Path
    modules: Path


def kernels_dir(home: Path) -> Path:
    """Where fetched kernels live: ``<release>/{vmlinuz,vmlinux,config,modules/}`` each."""
    return home / "kernels"


def find_kernel(
    home: Path, modules: Sequence[str] = (), *, configured: Path | None = None, boot: Path = BOOT, trees: Path = MODULES
) -> Kernel:
    """The kernel to boot: the newest of the first of these places that has one with all of ``modules``.

    ``configured`` (a kernel image, or a folder such as `kernels_dir` holds), if given the only place; ``home``'s
    kernels; those in ``boot`` with their modules in ``trees``. Blocking, but quick.

    Raises `BackendUnavailable` saying what was looked at and why none of it will do.
    """
    if configured is not None:
        kernel = open_kernel(configured, trees=trees)
        resolve_modules(kernel.modules, modules)
        return kernel
    refused: list[str] = []
    for path in (*_newest(kernels_dir(home), ""), *_newest(boot, "vmlinuz-")):
        try:
            kernel = open_kernel(path, trees=trees)
            resolve_modules(kernel.modules, modules)
        except BackendUnavailable as error:
            refused.append(f"{path}: {error.message}")
        else:
            return kernel
    raise BackendUnavailable(
        "there is no kernel that a virtual machine could boot" + "".join(f"\n  {line}" for line in refused),
        hint=SETUP_HINT,
        details={"refused": refused},
    )


def open_kernel(path: Path, *, trees: Path = MODULES) -> Kernel:
    """A kernel by its image or by its folder. Raises `BackendUnavailable` if something is missing or unreadable."""
    if path.is_dir():
        image = next((path / name for name in ("vmlinux", "vmlinuz") if (path / name).is_file()), None)
        if image is None:
            raise BackendUnavailable(f"there is neither vmlinux nor vmlinuz in {path}", hint=SETUP_HINT)
        kernel = Kernel(release=path.name, image=image, modules=path / "modules")
    else:
        release = read_release(_read_head(path))
        if release is None:
            raise BackendUnavailable(
                f"{path} is no Linux kernel image",
                hint="give a bzImage (vmlinuz-…), or a folder with vmlinux and modules/",
            )
        kernel = Kernel(release=release, image=path, modules=trees / release)
    if not (kernel.modules / "modules.dep").is_file():
        raise BackendUnavailable(
            f"the modules of the kernel {kernel.release} are not in {kernel.modules}", hint=SETUP_HINT
        )
    return kernel


def _read_head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except PermissionError as error:
        raise BackendUnavailable(
            f"the kernel {path} may not be read by user {os.geteuid()}",
            hint=f"as root: chmod a+r {path}; or {SETUP_HINT}",
        ) from error
    except OSError as error:
        raise BackendUnavailable(f"the kernel {path} cannot be read: {error.strerror}", hint=SETUP_HINT) from error


def _newest(folder: Path, prefix: str) -> Iterator[Path]:
    try:
        found = [path for path in folder.iterdir() if path.name.startswith(prefix) and not path.name.startswith(".")]
    except OSError:
        return
    yield from sorted(found, key=lambda path: _version_key(path.name), reverse=True)


def _version_key(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"\d+|\D+", name)]
