"""The disk that takes what a worker writes: an ext4 file system in a sparse file, made without privileges."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import trio

from iii_core.errors import BackendUnavailable, SandboxError, SandboxRefused, StorageFull

MIN_SIZE: Final = 16 << 20
MAKE_SECONDS: Final = 60.0
_SEARCH: Final = "/usr/sbin:/sbin:/usr/bin:/bin"
_OPTIONS: Final = (
    *("-q", "-F", "-t", "ext4", "-m", "0", "-L", "iii-data"),
    *("-i", "8192"),  # bytes per inode: trees of npm and pip are made of small files
    *("-O", "^resize_inode"),  # it would set aside 4 MiB in a disk of 10 GiB
    *("-J", "size=4"),  # MiB; as much of the host's disk as every used disk takes at least
    *("-E", "lazy_itable_init=1,lazy_journal_init=1,assume_storage_prezeroed=1,root_owner=0:0"),
)
"""Holes read as zeros, so nothing but what is not zero is written."""
_E2FSCK_GOOD: Final = frozenset({0, 1})  # 1: it repaired something, such as a journal that was to be replayed
_SUPERBLOCK: Final = 1024  # where it is
_SUPERBLOCK_SIZE: Final = 1024
_SUPERBLOCK_FIELDS: Final = struct.Struct("<4xI16xI28xH38xI")
"""s_blocks_count_lo, s_log_block_size, s_magic, s_feature_incompat"""
_BLOCKS_HIGH: Final = struct.Struct("<I")
_BLOCKS_HIGH_AT: Final = 0x150
_INCOMPAT_64BIT: Final = 0x80
_LARGEST_LOG_BLOCK_SIZE: Final = 6  # 64 KiB
_EXT4_MAGIC: Final = 0xEF53


async def create_data_disk(path: Path, size: int) -> None:
    """Make the disk at ``path``: ``size`` bytes (≥ 16 MiB) at most, and at first below 2 MiB really.

    One that is there keeps what is on it, and grows if it is smaller; it must not be in use then.

    Give it to a machine as a virtio-blk disk with `iii_sandbox_guest.boot.DATA_SERIAL`, with ``discard=unmap`` where
    the VMM knows that: what is deleted inside is then given back to the host. It must never be in use twice at a time.

    Either it is whole afterwards or as it was before, also when cancelled. Raises `SandboxRefused` for a size that is
    too small, or smaller than that of the disk that is there, `StorageFull`, `BackendUnavailable` without e2fsprogs.
    """
    if size < MIN_SIZE:
        raise SandboxRefused(
            f"a sandbox's disk of {size} bytes is too small", hint=f"give it at least {MIN_SIZE >> 20} MiB"
        )
    if await trio.Path(path).is_file():
        await _fit(path, size)
        return
    with _outcome(f"the sandbox's disk {path} cannot be made"), _temporary_file(path, size) as fresh:
        await _run("mke2fs", *_OPTIONS, str(fresh), what=f"make the sandbox's disk {path}")
        await trio.to_thread.run_sync(_publish, fresh, path)


async def _fit(path: Path, size: int) -> None:
    """Let a disk grow; never cut off in the middle, and one that was (with the machine's power) is finished here."""
    has = await trio.to_thread.run_sync(_file_system_size, path)
    if has > size:
        raise SandboxRefused(
            f"the sandbox's disk {path} has {has >> 20} MiB, and cannot shrink to {size >> 20} MiB",
            hint=f"give the worker `disk: {has >> 20}Mi` or more, or remove and add it, which loses what it wrote",
        )
    what = f"let the sandbox's disk {path} grow"
    with _outcome(f"the sandbox's disk {path} cannot grow to {size >> 20} MiB"), trio.CancelScope(shield=True):
        try:
            os.truncate(path, size)  # also where only the file grew
            if has < size:
                await _run("e2fsck", "-f", "-p", str(path), what=what, good=_E2FSCK_GOOD)
                await _run("resize2fs", str(path), what=what)
        finally:
            os.truncate(path, _file_system_size(path))


@contextmanager
def _outcome(failure: str) -> Generator[None]:
    """What the operating system says, as an error of ours."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise SandboxRefused(
                f"{failure}: {error.strerror}", hint="the file system of the project's folder cannot hold such a file"
            ) from error
        raise StorageFull(f"{failure}: {error.strerror}") from error


def _file_system_size(path: Path) -> int:
    """In bytes, as the superblock says (https://docs.kernel.org/filesystems/ext4/super.html).

    What it says may be a guest's doing.
    """
    with path.open("rb") as file:
        file.seek(_SUPERBLOCK)
        superblock = file.read(_SUPERBLOCK_SIZE)
    if len(superblock) == _SUPERBLOCK_SIZE:
        low, log_block_size, magic, incompatible = _SUPERBLOCK_FIELDS.unpack_from(superblock)
        (high,) = _BLOCKS_HIGH.unpack_from(superblock, _BLOCKS_HIGH_AT) if incompatible & _INCOMPAT_64BIT else (0,)
        if magic == _EXT4_MAGIC and log_block_size <= _LARGEST_LOG_BLOCK_SIZE:
            return int((high << 32 | low) << (10 + log_block_size))
    raise SandboxError(f"the sandbox's disk {path} is damaged", hint="remove the worker and add it again")


@contextmanager
def _temporary_file(path: Path, size: int) -> Generator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=path.parent, delete=False) as file:
        fresh = Path(file.name)
        try:
            file.truncate(size)
            yield fresh
        finally:
            fresh.unlink(missing_ok=True)


def _publish(fresh: Path, path: Path) -> None:
    with fresh.open("rb") as file:
        os.fsync(file)
    fresh.rename(path)


async def _run(name: str, *arguments: str, what: str, good: frozenset[int] = frozenset({0})) -> None:
    program = shutil.which(name, path=_SEARCH)
    if program is None:
        raise BackendUnavailable(f"there is no {name} on this machine", hint="on Debian: apt-get install e2fsprogs")
    with trio.fail_after(MAKE_SECONDS):
        done = await trio.run_process(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    if done.returncode not in good:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise SandboxError(f"{name} cannot {what}: {said[-1] if said else done.returncode}")
