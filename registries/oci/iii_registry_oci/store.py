"""The image store below ``$III_HOME/images``: content-addressed, shared by all projects and processes of a user.

::

    blobs/sha256/HEX        layers and configurations, as their registries sent them
    roots/HEX.squashfs      the root image of the manifest sha256:HEX
    roots/HEX.json          what is known of it; its presence says that the image is complete
    refs/HEX.json           which manifest a reference leads to on a platform
    staging/NAME/           one pull at work; whoever finds one without a living owner sweeps it
    locks/                  one lock for changes to the store, and some for pulls of the same image

A pull happens in staging, on hard links to the blobs that are there already, and is published by renames: whatever ends
it before, the store is as it was. Changes hold the store's lock, so a sweep never removes what is being published.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

import msgspec
import trio

from iii_core.images.port import ImageConfig, ImageHints, ImageUser
from iii_registry_oci.manifest import Manifest, Platform, digest_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Iterable

LOCK_POLL_SECONDS = 0.05
FORMAT = 2
_Record = TypeVar("_Record", bound=msgspec.Struct)


class StoredImage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``roots/HEX.json``.

    ``size`` is the root image's; ``user`` is whom its configuration's ``User`` means by the image's own files, None if
    they don't know; ``blobs`` are the digests it was made from.
    """

    format: int
    digest: str
    size: int
    platform: str
    config: ImageConfig
    hints: ImageHints | None
    user: ImageUser | None
    blobs: tuple[str, ...]


class StoredReference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``refs/HEX.json``. ``pin`` is the reference that always leads to this image, None where there is none."""

    format: int
    reference: str
    platform: str
    digest: str
    pin: str | None


class ImageStore:
    """One store. Safe for concurrent use by tasks and processes; methods without ``async`` are quick or say so."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._blobs = folder / "blobs" / "sha256"
        self._roots = folder / "roots"
        self._refs = folder / "refs"
        self._staging = folder / "staging"
        self._locks = folder / "locks"

    def prepare(self) -> None:
        """Make the store's folders and sweep what dead pulls left behind."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (self._blobs, self._roots, self._refs, self._staging, self._locks):
            folder.mkdir(parents=True, exist_ok=True)
        with self._changing():
            for left in self._staging.iterdir():
                with (left / "lock").open("a") as owner:
                    if _try_lock(owner):
                        shutil.rmtree(left, ignore_errors=True)

    def root_path(self, digest: str) -> Path:
        """Where the root image of a manifest is, or would be."""
        return self._roots / f"{_hex(digest)}.squashfs"

    def find(self, digest: str) -> StoredImage | None:
        """The image of a manifest, if it is here and whole."""
        image = _read(self._roots / f"{_hex(digest)}.json", StoredImage)
        if image is None or image.format != FORMAT or image.digest != digest:
            return None
        try:
            whole = self.root_path(digest).stat().st_size == image.size
        except FileNotFoundError:
            return None
        return image if whole else None

    def lookup(self, reference: str, platform: Platform) -> StoredImage | None:
        """The image that a reference led to when it was last looked at."""
        found = self._reference(reference, platform)
        return self.find(found.digest) if found else None

    def pin(self, reference: str, platform: Platform) -> str | None:
        """The pin that was noted for a reference, if it was."""
        found = self._reference(reference, platform)
        return found.pin if found else None

    def refer(self, reference: str, platform: Platform, digest: str, pin: str | None) -> None:
        """Note that a reference and its pin lead to a stored image; blocks while another process changes the store."""
        with self._changing():
            self._refer(reference, platform, digest, pin)

    @asynccontextmanager
    async def pulling(self, digest: str) -> AsyncGenerator[None, None]:
        """Hold off others that would pull the same image."""
        path = self._locks / f"pull-{_hex(digest)[:2]}"  # a bounded number of files that are never removed
        with path.open("a") as lock:
            while not _try_lock(lock):  # noqa: ASYNC110 (no event tells that another process let go of a lock)
                await trio.sleep(LOCK_POLL_SECONDS)
            yield

    @contextmanager
    def staging(self) -> Generator[Path, None, None]:
        """A folder for one pull, gone when the scope is left."""
        folder = self._staging / secrets.token_hex(8)
        with self._changing():
            folder.mkdir(mode=0o700)
            owner = (folder / "lock").open("a")
            _try_lock(owner)
        try:
            with owner:
                (folder / "blobs" / "sha256").mkdir(parents=True)
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def borrow(self, digests: Iterable[str], staging: Path) -> set[str]:
        """Hard-link those of the blobs that are here into a pull's folder; gives their digests."""
        borrowed: set[str] = set()
        for digest in digests:
            try:
                os.link(self._blobs / _hex(digest), staging_blob(staging, digest))
            except FileNotFoundError:
                continue
            except FileExistsError:
                pass  # a layer that the image has twice
            borrowed.add(digest)
        return borrowed

    def holds_any(self, digests: Iterable[str]) -> bool:
        """Whether one of the blobs is here."""
        return any((self._blobs / _hex(digest)).exists() for digest in digests)

    def publish(
        self, staging: Path, root: Path, image: StoredImage, reference: str, platform: Platform, pin: str | None
    ) -> None:
        """Add a pulled image to the store; blocks for as long as its bytes take to reach the disk."""
        for digest in set(image.blobs):
            _sync(staging_blob(staging, digest))
        _sync(root)
        with self._changing():
            for digest in set(image.blobs):
                staging_blob(staging, digest).replace(self._blobs / _hex(digest))
            _sync(self._blobs)
            root.replace(self.root_path(image.digest))
            _sync(self._roots)
            _write(self._roots / f"{_hex(image.digest)}.json", image)
            self._refer(reference, platform, image.digest, pin)

    def forget(self, reference: str, platform: Platform) -> int:
        """Drop a reference, its pins, and all that no reference needs; gives the bytes freed. Blocks like `refer`."""
        with self._changing():
            for path in self._refs.glob("*.json"):
                found = _read(path, StoredReference)
                if found and found.platform == str(platform) and reference in (found.reference, _unpinned(found)):
                    path.unlink()
            return self._sweep()

    def _sweep(self) -> int:
        wanted = {found.digest for path in self._refs.glob("*.json") if (found := _read(path, StoredReference))}
        images = {path: _read(path, StoredImage) for path in self._roots.glob("*.json")}
        kept = [image for image in images.values() if image and image.digest in wanted]
        roots = {_hex(image.digest) for image in kept}
        blobs = {_hex(digest) for image in kept for digest in image.blobs}
        doomed = [path for path in images if path.stem not in roots]  # first: an image without its file is not whole
        doomed += [path for path in self._roots.iterdir() if path.suffix != ".json" and path.stem not in roots]
        doomed += [path for path in self._blobs.iterdir() if path.name not in blobs]
        return sum(_unlink(path) for path in doomed)

    def _reference(self, reference: str, platform: Platform) -> StoredReference | None:
        found = _read(self._ref_path(reference, platform), StoredReference)
        return found if found is not None and found.format == FORMAT and found.reference == reference else None

    def _refer(self, reference: str, platform: Platform, digest: str, pin: str | None) -> None:
        for name in {reference, pin or reference}:
            record = StoredReference(format=FORMAT, reference=name, platform=str(platform), digest=digest, pin=pin)
            _write(self._ref_path(name, platform), record)

    def _ref_path(self, reference: str, platform: Platform) -> Path:
        return self._refs / f"{_hex(digest_of(f'{platform} {reference}'.encode()))}.json"

    @contextmanager
    def _changing(self) -> Generator[None, None, None]:
        with (self._locks / "store").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def staging_blob(staging: Path, digest: str) -> Path:
    """Where a pull has a blob."""
    return staging / "blobs" / "sha256" / _hex(digest)


def blobs_of(manifest: Manifest) -> tuple[str, ...]:
    """The digests of an image's configuration and layers."""
    return (manifest.config.digest, *(layer.digest for layer in manifest.layers))


def _unpinned(found: StoredReference) -> str | None:
    """The reference that a pin was made of; None for what is no pin."""
    return found.reference.rpartition("@")[0] if found.reference == found.pin else None


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(path: Path, kind: type[_Record]) -> _Record | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _write(path: Path, record: msgspec.Struct) -> None:
    """Write a record so that a reader finds the old one or the new one."""
    temporary = path.with_suffix(".new")
    try:
        with temporary.open("wb") as file:
            file.write(msgspec.json.encode(record))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unlink(path: Path) -> int:
    size = path.stat().st_size
    path.unlink()
    return size
