"""Saved states of `MemoryBackend`: the writable layer, and what processes there were that a host had released."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from iii_core.errors import SandboxError, SnapshotUnusable
from iii_core.sandbox.port import SandboxSpec

LAYER: Final = "layer"
GUEST: Final = "guest.json"


class SavedGuest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``guest.json``: the image's digest, and the processes as `MemoryProcess.as_json` has them."""

    image: str
    processes: list[dict[str, Any]]


@contextmanager
def new_folder(folder: Path) -> Generator[Path]:
    """A folder that gets its name when the block has succeeded. Raises `SandboxError` if there is one."""
    fresh = folder.with_name(f".{folder.name}.saving")
    if folder.exists():
        raise SandboxError(f"a state cannot be saved to {folder}: it exists already", hint="name another folder")
    fresh.mkdir(mode=0o700, parents=True)
    try:
        yield fresh
        fresh.rename(folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def write_state(folder: Path, spec: SandboxSpec, processes: list[dict[str, Any]]) -> None:
    """Save into an empty folder."""
    shutil.copytree(spec.writable_dir, folder / LAYER)
    (folder / GUEST).write_bytes(msgspec.json.encode(SavedGuest(spec.root.digest, processes)))


def read_state(folder: Path, spec: SandboxSpec) -> list[dict[str, Any]]:
    """The processes of a saved state. Raises `SnapshotUnusable`."""
    try:
        saved = msgspec.json.decode((folder / GUEST).read_bytes(), type=SavedGuest)
    except (OSError, msgspec.MsgspecError) as error:
        raise SnapshotUnusable(
            f"there is no saved state in {folder}, or it is damaged: {error}", hint="start it afresh"
        ) from error
    if saved.image != spec.root.digest:
        raise SnapshotUnusable(f"the saved state in {folder} is of another image", hint="start it afresh")
    return saved.processes


def replace_layer(folder: Path, spec: SandboxSpec) -> None:
    """Put the saved writable layer in the place of today's."""
    shutil.rmtree(spec.writable_dir)
    shutil.copytree(folder / LAYER, spec.writable_dir)
