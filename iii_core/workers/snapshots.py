"""Saved states of one worker on disk: the state that is in use, and a record of what it fits to.

The record names the folder of its state and is replaced atomically once that is complete, so an older state stays in
use until then, and what a crash left half done is swept. A state holds the worker's memory, secrets included: folder
and files are for their owner alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from iii_core.errors import SnapshotUnusable
from iii_core.project.files import read_own, write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from iii_core.images.port import Image
    from iii_core.workers.plan import WorkerPlan
    from iii_core.workers.spec import WorkerSpec

SNAPSHOTS_FOLDER: Final = "snapshots"
RECORD: Final = "snapshot.json"
FORMAT: Final = 1
_STATE: Final = "state-"
_STATE_NAME: Final = re.compile(_STATE + "[0-9a-f]{12}")
_LIMIT: Final = 1 << 20
_LATEST: Final = 1e11  # seconds since 1970: what is shown as a date has to be one
_BLOCK: Final = 512  # of st_blocks, stat(2)
AFRESH: Final = "it is started afresh; 'iii worker snapshot NAME' saves it again"


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """``snapshot.json``.

    Attributes:
        format: `FORMAT`.
        state: name of the folder beside it that a sandbox backend wrote.
        taken: when, in seconds since 1970.
        image: the reference of the worker's image.
        fits: what must be the same for it to be used, by name (`what_it_fits`); values are not for people.
    """

    format: int
    state: str
    taken: float
    image: str
    fits: dict[str, str]


def what_it_fits(spec: WorkerSpec, image: Image, backend: str, plan: WorkerPlan) -> dict[str, str]:
    """What a running worker is made of: two that are equal here may stand for one another. Pure.

    What the backend itself can tell (kernel, agent, versions) is left to it. Published ports are the engine's alone.
    """
    return {
        "backend": backend,
        "image": image.digest,
        "program": _digest([plan.argv, plan.cwd, plan.stop_signal]),
        "environment": _digest(sorted(plan.env.items())),
        "user": _digest([plan.uid, plan.gid, plan.groups]),
        "limits": _digest(plan.limits),
        "network": _digest(spec.egress),
        "mounts": _digest([(str(mount.source), mount.target, mount.writable) for mount in spec.mounts]),
    }


def _digest(value: object) -> str:
    return hashlib.sha256(msgspec.json.encode(value)).hexdigest()


@dataclass(frozen=True, slots=True)
class SnapshotStore:
    """The snapshot of one worker, below ``folder``. All methods block for files, `sweep` and `drop` for large ones."""

    folder: Path

    def read(self) -> Snapshot | None:
        """The snapshot, if there is one. Raises `SnapshotUnusable` for a record that cannot be read."""
        try:
            snapshot = msgspec.json.decode(read_own(self.folder / RECORD, _LIMIT), type=Snapshot)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, UnicodeError) as error:
            raise self._unusable(f"its record is damaged ({error})") from error
        if snapshot.format != FORMAT:
            raise self._unusable(f"it has format {snapshot.format}, known is {FORMAT}")
        if not _STATE_NAME.fullmatch(snapshot.state):
            raise self._unusable("its record names no state")
        if not 0 <= snapshot.taken < _LATEST:
            raise self._unusable("its record has no time")
        return snapshot

    def find(self, fits: Mapping[str, str]) -> Path | None:
        """The state to start from, if there is one. Raises `SnapshotUnusable` where there is one that does not fit."""
        snapshot = self.read()
        if snapshot is None:
            return None
        differing = [name for name, value in fits.items() if snapshot.fits.get(name) != value]
        if differing:
            raise self._unusable(f"it is of another {' and another '.join(differing)}", differing)
        state = self.folder / snapshot.state
        for folder in (self.folder, state):
            if not _is_own_folder(folder):
                raise self._unusable(f"{folder} is no folder of this user's")
        return state

    def begin(self) -> Path:
        """A folder, not there yet, for a state to be saved to."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        return self.folder / f"{_STATE}{secrets.token_hex(6)}"

    def commit(self, state: Path, image: str, fits: Mapping[str, str]) -> None:
        """Make a complete state the one in use, and delete the others. Raises `OSError`, `ConfigIoError`."""
        for path in _files(state):
            path.chmod(0o600)
            with path.open("rb") as file:
                os.fsync(file.fileno())
        snapshot = Snapshot(format=FORMAT, state=state.name, taken=time.time(), image=image, fits=dict(fits))
        write_atomic(self.folder / RECORD, msgspec.json.encode(snapshot), mode=0o600)
        self.sweep()

    def sweep(self) -> None:
        """Delete what is not in use: older states, and what was left half done. Not while a state is being saved."""
        try:
            snapshot = self.read()
        except SnapshotUnusable:
            return  # of a newer version, perhaps
        if not self.folder.is_dir():
            return
        with suppress(FileNotFoundError):  # the worker is being removed
            for path in self.folder.iterdir():
                if path.name.lstrip(".").startswith(_STATE) and (snapshot is None or path.name != snapshot.state):
                    shutil.rmtree(path, ignore_errors=True)
            if snapshot is None and not any(self.folder.iterdir()):
                self.folder.rmdir()

    def drop(self) -> bool:
        """Delete everything; whether there was a snapshot. Raises `OSError`."""
        if self.folder.is_symlink():  # never of our making; what it leads to is not ours to delete
            self.folder.unlink()
            return False
        there = (self.folder / RECORD).exists()
        (self.folder / RECORD).unlink(missing_ok=True)  # first: nobody starts from half a state
        if self.folder.is_dir():
            shutil.rmtree(self.folder)
        return there

    def facts(self) -> dict[str, Any] | None:
        """What ``status`` shows: ``taken`` (seconds since 1970), ``size`` in bytes, ``image``, or else ``problem``."""
        try:
            snapshot = self.read()
        except SnapshotUnusable as error:
            return {"taken": None, "size": None, "image": None, "problem": error.message}
        if snapshot is None:
            return None
        size = sum(path.stat().st_blocks * _BLOCK for path in _files(self.folder / snapshot.state))
        return {"taken": snapshot.taken, "size": size, "image": snapshot.image, "problem": None}

    def _unusable(self, why: str, differing: list[str] | None = None) -> SnapshotUnusable:
        details: dict[str, Any] = {"folder": str(self.folder), "differing": differing or []}
        return SnapshotUnusable(f"the snapshot in {self.folder} cannot be used: {why}", hint=AFRESH, details=details)


def _is_own_folder(path: Path) -> bool:
    """Nobody else can have put files there; a link may lead to where others can."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
