"""Which kernel modules a boot needs, in the order in which they are to be loaded.

Read from what ``depmod`` makes (``modules.dep(5)``) and from ``modules.builtin``, so it holds for any kernel's tree.
"""

from __future__ import annotations

import lzma
import shutil
import subprocess
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from iii_core.errors import BackendUnavailable

CONFIG_OPTIONS: Final[Mapping[str, str]] = {
    "erofs": "CONFIG_EROFS_FS",
    "ext4": "CONFIG_EXT4_FS",
    "overlay": "CONFIG_OVERLAY_FS",
    "squashfs": "CONFIG_SQUASHFS",
    "virtio_blk": "CONFIG_VIRTIO_BLK",
    "virtio_console": "CONFIG_VIRTIO_CONSOLE",
    "virtio_mmio": "CONFIG_VIRTIO_MMIO",
    "virtio_net": "CONFIG_VIRTIO_NET",
    "virtio_pci": "CONFIG_VIRTIO_PCI",
    "virtiofs": "CONFIG_VIRTIO_FS",
    "vmw_vsock_virtio_transport": "CONFIG_VIRTIO_VSOCKETS",
}
"""The options of the kernel's configuration that make the modules a boot may ask for."""

_SUFFIXES: Final = (".ko", ".ko.gz", ".ko.xz", ".ko.zst")


@dataclass(frozen=True, slots=True)
class Module:
    """One module: its name with underscores, and its file."""

    name: str
    path: Path

    def read(self) -> bytes:
        """The module itself, uncompressed. Raises `BackendUnavailable` where that cannot be had."""
        try:
            data = self.path.read_bytes()
            match self.path.suffix:
                case ".xz":
                    return lzma.decompress(data)
                case ".gz":
                    return zlib.decompress(data, wbits=zlib.MAX_WBITS | 16)
                case ".zst":
                    return _unzstd(data)
                case _:
                    return data
        except (OSError, lzma.LZMAError, zlib.error, subprocess.CalledProcessError) as error:
            raise BackendUnavailable(
                f"the kernel module {self.path} cannot be read: {error}",
                hint="reinstall that kernel, or fetch one with: iii sandbox setup",
            ) from error


def resolve_modules(tree: Path, names: Iterable[str]) -> tuple[Module, ...]:
    """The modules that loading ``names`` takes, each after those it depends on; what is built in is left out.

    Args:
        tree: a kernel's folder of modules, such as ``/lib/modules/6.1.0-56-cloud-amd64``.
        names: with dashes or underscores.

    Raises `BackendUnavailable` naming the module, and the option that makes it, if the kernel has it in no form.
    """
    files, dependencies = _read_dependencies(tree)
    builtin = _read_builtin(tree)
    ordered: dict[str, Module] = {}

    def add(name: str) -> None:
        if name in ordered or (name in builtin and name not in files):
            return
        if name not in files:
            raise _missing(tree, name)
        for needed in reversed(dependencies[name]):  # depmod writes the nearest first
            add(needed)
        ordered[name] = Module(name, tree / files[name])

    for name in names:
        add(_module_name(name))
    return tuple(ordered.values())


def _read_dependencies(tree: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The file and the dependencies of each module."""
    files: dict[str, str] = {}
    dependencies: dict[str, list[str]] = {}
    for line in _read(tree / "modules.dep").splitlines():
        file, _, needed = line.partition(":")
        name = _module_name(file)
        files[name] = file
        dependencies[name] = [_module_name(path) for path in needed.split()]
    return files, dependencies


def _read_builtin(tree: Path) -> set[str]:
    return {_module_name(line) for line in _read(tree / "modules.builtin").splitlines()}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BackendUnavailable(
            f"the modules of the kernel cannot be listed: {error}",
            hint="the folder must be one that depmod has seen; or fetch a kernel with: iii sandbox setup",
        ) from error


def _module_name(path: str) -> str:
    name = PurePosixPath(path).name
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name.replace("-", "_")


def _missing(tree: Path, name: str) -> BackendUnavailable:
    option = CONFIG_OPTIONS.get(name)
    wanted = f" (it is made by {option}=m or =y)" if option else ""
    return BackendUnavailable(
        f"the kernel {tree.name} has no module {name}{wanted}",
        hint="choose another kernel, or fetch one that has all that is needed: iii sandbox setup",
        details={"module": name, "option": option, "modules": str(tree)},
    )


def _unzstd(data: bytes) -> bytes:
    program = shutil.which("zstd")
    if program is None:
        raise BackendUnavailable(
            "this kernel's modules are compressed with zstd", hint="on Debian: apt-get install zstd"
        )
    return subprocess.run([program, "-dc"], input=data, capture_output=True, check=True).stdout
