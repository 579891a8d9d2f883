"""Where an image's bytes come from: registries and ``docker save`` archives by skopeo, layouts by ourselves."""

from __future__ import annotations

from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import trio

from iii_registry_oci.layers.limits import MIB
from iii_registry_oci.local.archive import check_docker_archive, open_archive
from iii_registry_oci.local.files import Folder, readable
from iii_registry_oci.local.layout import ArchiveFiles, FolderFiles, Layout
from iii_registry_oci.local.policy import check_policy
from iii_registry_oci.reference import LocalReference, Reference
from iii_registry_oci.store import staging_blob

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping
    from pathlib import Path

    from iii_registry_oci.layers.limits import Limits
    from iii_registry_oci.manifest import Descriptor, Manifest, Platform
    from iii_registry_oci.skopeo import Skopeo

REPORT_EVERY = 8 * MIB
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A reference's manifest for this machine; ``pin`` is the reference that always leads there."""

    digest: str
    manifest: Manifest
    pin: str | None


class Origin(Protocol):
    """One image to be had. Both methods may be cancelled at any time."""

    async def manifest(self, chosen: Descriptor | None) -> bytes:
        """The manifest or index that the reference leads to, or the one that was ``chosen`` from that index.

        Raises the `ImageError` family.
        """
        ...

    async def copy(
        self, resolved: Resolved, /, sizes: Mapping[str, int], staging: Path, arrived: Callable[[int], None]
    ) -> None:
        """Copy blobs to ``staging/blobs/sha256/``, where others of the image may be already.

        Args:
            resolved: the image.
            sizes: of the blobs to come, by their digests.
            staging: the pull's folder.
            arrived: told the bytes that are here, now and then.
        """
        ...


class SkopeoOrigin:
    """What skopeo fetches; ``archive`` is the descriptor of a ``docker-archive``'s plain file."""

    def __init__(
        self, skopeo: Skopeo, reference: Reference, platform: Platform, scratch: Path, archive: int | None = None
    ) -> None:
        self._skopeo = skopeo
        self._reference = reference
        self._platform = platform
        self._scratch = scratch
        self._archive = archive

    async def manifest(self, chosen: Descriptor | None) -> bytes:
        """See `Origin.manifest`."""
        digest = chosen.digest if chosen else None
        return await self._skopeo.manifest(self._reference, digest, self._scratch, archive=self._archive)

    async def copy(
        self, resolved: Resolved, /, sizes: Mapping[str, int], staging: Path, arrived: Callable[[int], None]
    ) -> None:
        """See `Origin.copy`."""
        await self._skopeo.copy(
            self._reference,
            resolved.digest,
            self._platform,
            staging,
            expected=sum(sizes.values()),
            arrived=arrived,
            archive=self._archive,
        )
        config = staging_blob(staging, resolved.manifest.config.digest)
        if not config.exists():  # skopeo wrote it anew, as OCI has it: Docker's says more, and in another order
            raw = await self._skopeo.config(self._reference, resolved.digest, self._scratch, archive=self._archive)
            await trio.Path(config).write_bytes(raw)


class LayoutOrigin:
    """An image layout of this machine."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    async def manifest(self, chosen: Descriptor | None) -> bytes:
        """See `Origin.manifest`."""
        if chosen is None:
            return await trio.to_thread.run_sync(self._layout.manifest)
        return await trio.to_thread.run_sync(self._layout.document, chosen)

    async def copy(
        self, _resolved: Resolved, /, sizes: Mapping[str, int], staging: Path, arrived: Callable[[int], None]
    ) -> None:
        """See `Origin.copy`."""
        await trio.to_thread.run_sync(self._copy, sizes, staging, arrived)

    def _copy(self, sizes: Mapping[str, int], staging: Path, arrived: Callable[[int], None]) -> None:
        done = told = 0

        def moved(count: int) -> None:
            nonlocal done, told
            trio.from_thread.check_cancelled()
            done += count
            if done - told >= REPORT_EVERY:
                told = done
                trio.from_thread.run_sync(arrived, done)

        for digest, size in sizes.items():
            self._layout.copy(digest, size, staging_blob(staging, digest), moved)


@asynccontextmanager
async def open_origin(
    reference: Reference,
    *,
    skopeo: Skopeo,
    platform: Platform,
    scratch: Path,
    limits: Limits,
    environ: Mapping[str, str],
) -> AsyncGenerator[Origin, None]:
    """The origin of an image for the scope's time; files of this machine are opened, and archives looked through.

    ``scratch`` is an empty folder. Raises the `ImageError` family.
    """
    if not isinstance(reference, LocalReference):
        yield SkopeoOrigin(skopeo, reference, platform, scratch)
        return
    with ExitStack() as opened:
        tick = trio.from_thread.check_cancelled

        def open_docker_archive() -> Origin:
            content = opened.enter_context(open_archive(reference, scratch, limits, tick))
            with readable(reference):
                check_docker_archive(content, reference.canonical, limits, tick)
            return SkopeoOrigin(skopeo, reference, platform, scratch, content.fileno())

        def open_layout() -> Origin:
            check_policy(reference, environ)
            if reference.scheme == "oci":
                return LayoutOrigin(
                    Layout(FolderFiles(opened.enter_context(closing(Folder(reference)))), reference, limits)
                )
            content = opened.enter_context(open_archive(reference, scratch, limits, tick))
            with readable(reference):
                return LayoutOrigin(Layout(ArchiveFiles(content, reference.canonical, limits, tick), reference, limits))

        yield await trio.to_thread.run_sync(
            open_docker_archive if reference.scheme == "docker-archive" else open_layout
        )
