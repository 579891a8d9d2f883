"""The disk that takes what a worker writes: an ext4 file system in a sparse file, made without privileges."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import trio

from iii_core.errors import BackendUnavailable, SandboxError, StorageFull

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


async def create_data_disk(path: Path, size: int) -> None:
    """Make the disk at ``path`` unless it is there: ``size`` bytes (≥ 16 MiB) at most, and at first below 2 MiB really.

    Give it to a machine as a virtio-blk disk with `iii_sandbox_guest.boot.DATA_SERIAL`, with ``discard=unmap`` where
    the VMM knows that: what is deleted inside is then given back to the host. It must never be in use twice at a time.

    Either it is whole afterwards or there is none, also when cancelled. Raises `SandboxError` for a size that is too
    small, `StorageFull`, `BackendUnavailable` without ``mke2fs``.
    """
    if size < MIN_SIZE:
        raise SandboxError(
            f"a sandbox's disk of {size} bytes is too small", hint=f"give it at least {MIN_SIZE >> 20} MiB"
        )
    if await trio.Path(path).is_file():
        return
    program = shutil.which("mke2fs", path=_SEARCH)
    if program is None:
        raise BackendUnavailable("there is no mke2fs on this machine", hint="on Debian: apt-get install e2fsprogs")
    try:
        with _temporary_file(path, size) as fresh:
            await _make_file_system(program, fresh)
            await trio.to_thread.run_sync(_publish, fresh, path)
    except OSError as error:
        raise StorageFull(f"the sandbox's disk {path} cannot be made: {error.strerror}") from error


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


async def _make_file_system(program: str, path: Path) -> None:
    with trio.fail_after(MAKE_SECONDS):
        done = await trio.run_process(
            [program, *_OPTIONS, str(path)],
            stdin=subprocess.DEVNULL,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise SandboxError(f"mke2fs cannot make the sandbox's disk {path}: {said[-1] if said else done.returncode}")
