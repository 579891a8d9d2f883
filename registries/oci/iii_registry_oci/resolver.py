"""The resolver: from a reference to an image in the store."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from iii_core.errors import DigestMismatch, ImageUnsafe, StorageFull
from iii_core.images.port import Image, ImageConfig, ImageResolver, Progress, ProgressSink
from iii_core.sandbox.port import RootImage
from iii_registry_oci import manifest as documents
from iii_registry_oci.hints import parse_hints
from iii_registry_oci.layers.blob import Layer
from iii_registry_oci.layers.limits import FULL, Limits
from iii_registry_oci.manifest import Index, Manifest
from iii_registry_oci.origins import Origin, Resolved, open_origin
from iii_registry_oci.reference import Reference, parse
from iii_registry_oci.rootimage import build_root
from iii_registry_oci.skopeo import Skopeo
from iii_registry_oci.store import FORMAT, ImageStore, StoredImage, blobs_of, staging_blob

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Mapping
    from contextlib import AbstractAsyncContextManager

    from iii_core.records import OpenContext


class OciResolver(ImageResolver):
    """Images of registries and local archives, pulled with skopeo into one store of root images."""

    def __init__(self, store: ImageStore, environ: Mapping[str, str], limits: Limits | None = None) -> None:
        self._store = store
        self._environ = environ
        self._limits = limits or Limits()
        self._skopeo = Skopeo(environ, self._limits)
        self._platform = documents.host_platform()

    async def fetch(self, source: str, *, refresh: bool, progress: ProgressSink) -> Image:
        """See `ImageResolver.fetch`. A digest cannot move, so such an image is never looked up again."""
        reference = parse(source, cwd=Path.cwd())
        found = self._store.lookup(reference.canonical, self._platform)
        if found and (not refresh or reference.digest):
            progress(Progress(stage="stored", item=reference.canonical))
            return self._image(reference, found)
        with _full_disk():
            progress(Progress(stage="resolving", item=reference.canonical))
            with self._store.staging() as scratch:
                async with self._open(reference, scratch) as origin:
                    resolved = await self._resolve(reference, origin)
                    stored = self._store.find(resolved.digest)
                    if stored:
                        await self._refer(reference, resolved)
                    else:
                        stored = await self._pull_once(reference, origin, resolved, progress)
        progress(Progress(stage="stored", item=reference.canonical))
        return self._image(reference, stored)

    async def stored(self, source: str) -> Image | None:
        """See `ImageResolver.stored`."""
        reference = parse(source, cwd=Path.cwd())
        found = self._store.lookup(reference.canonical, self._platform)
        return self._image(reference, found) if found else None

    async def remove(self, source: str) -> int:
        """See `ImageResolver.remove`; 0 for a reference that is not stored."""
        reference = parse(source, cwd=Path.cwd())
        return await trio.to_thread.run_sync(self._store.forget, reference.canonical, self._platform)

    def _open(self, reference: Reference, scratch: Path) -> AbstractAsyncContextManager[Origin]:
        return open_origin(
            reference,
            skopeo=self._skopeo,
            platform=self._platform,
            scratch=scratch,
            limits=self._limits,
            environ=self._environ,
        )

    async def _resolve(self, reference: Reference, origin: Origin) -> Resolved:
        """Ask for the manifest; where it is an index, for the one of this machine."""
        raw = await origin.manifest(None)
        digest = documents.digest_of(raw)
        pin = reference.pin(digest)
        if reference.digest:
            documents.check_digest(raw, reference.digest, f"The manifest of {reference.canonical}")
        document = documents.parse_document(raw, self._limits)
        if isinstance(document, Index):
            chosen = documents.choose(document, self._platform)
            if chosen.size > self._limits.manifest:
                raise ImageUnsafe(f"{reference.canonical}: a manifest of {chosen.size} bytes is too large")
            raw = await origin.manifest(chosen)
            digest = documents.check_digest(
                raw, chosen.digest, f"The {self._platform} manifest of {reference.canonical}"
            )
            document = documents.parse_document(raw, self._limits)
        if isinstance(document, Index):
            raise ImageUnsafe(f"{reference.canonical} is an index of indexes", hint="such images are not supported")
        return Resolved(digest=digest, manifest=document, pin=pin)

    async def _refer(self, reference: Reference, resolved: Resolved) -> None:
        await trio.to_thread.run_sync(
            self._store.refer, reference.canonical, self._platform, resolved.digest, resolved.pin
        )

    async def _pull_once(
        self, reference: Reference, origin: Origin, resolved: Resolved, progress: ProgressSink
    ) -> StoredImage:
        """Pull, unless another task or process did so while this one waited for its turn."""
        async with self._store.pulling(resolved.digest):
            stored = self._store.find(resolved.digest)
            if stored:
                await self._refer(reference, resolved)
                return stored
            try:
                return await self._pull(reference, origin, resolved, progress, reuse=True)
            except DigestMismatch:
                if not self._store.holds_any(blobs_of(resolved.manifest)):
                    raise
                # ours may be the damaged one
                return await self._pull(reference, origin, resolved, progress, reuse=False)

    async def _pull(
        self, reference: Reference, origin: Origin, resolved: Resolved, progress: ProgressSink, *, reuse: bool
    ) -> StoredImage:
        with self._store.staging() as staging:
            await self._download(reference, origin, resolved, staging, progress, reuse=reuse)
            config, layers = self._check(reference, resolved.manifest, staging)
            root = staging / "root.squashfs"
            total = sum(layer.size for layer in layers)
            built = await build_root(
                layers,
                root,
                user=config.user,
                limits=self._limits,
                environ=self._environ,
                moved=lambda done: progress(
                    Progress(stage="unpacking", item=reference.canonical, done=min(done, total), total=total)
                ),
            )
            image = StoredImage(
                format=FORMAT,
                digest=resolved.digest,
                size=root.stat().st_size,
                platform=str(self._platform),
                config=config,
                hints=parse_hints(built.hints) if built.hints is not None else None,
                user=built.user,
                blobs=blobs_of(resolved.manifest),
            )
            await trio.to_thread.run_sync(
                self._store.publish, staging, root, image, reference.canonical, self._platform, resolved.pin
            )
            return image

    async def _download(
        self,
        reference: Reference,
        origin: Origin,
        resolved: Resolved,
        staging: Path,
        progress: ProgressSink,
        *,
        reuse: bool,
    ) -> None:
        blobs = {blob.digest: blob.size for blob in (resolved.manifest.config, *resolved.manifest.layers)}
        borrowed = self._store.borrow(blobs, staging) if reuse else set[str]()
        missing = {digest: size for digest, size in blobs.items() if digest not in borrowed}
        total = sum(missing.values())

        def arrived(done: int) -> None:
            progress(Progress(stage="downloading", item=reference.canonical, done=done, total=total))

        arrived(0)
        await origin.copy(resolved, missing, staging, arrived)
        arrived(total)

    def _check(self, reference: Reference, manifest: Manifest, staging: Path) -> tuple[ImageConfig, list[Layer]]:
        """Whether all that the manifest names is here, and the configuration is in order; layers are checked later."""
        for blob in (manifest.config, *manifest.layers):
            path = staging_blob(staging, blob.digest)
            if not path.is_file() or path.stat().st_size != blob.size:
                raise DigestMismatch(
                    f"{reference.canonical}: the blob {blob.digest} did not arrive as its manifest describes it"
                )
        raw = staging_blob(staging, manifest.config.digest).read_bytes()
        documents.check_digest(raw, manifest.config.digest, f"The configuration of {reference.canonical}")
        found, config, diff_ids = documents.parse_config(raw, manifest, self._limits)
        if (found.os, found.architecture) != (self._platform.os, self._platform.architecture):
            raise documents.no_platform(self._platform, [found])
        layers = [
            Layer(path=staging_blob(staging, layer.digest), digest=layer.digest, size=layer.size, diff_id=diff_id)
            for layer, diff_id in zip(manifest.layers, diff_ids, strict=True)
        ]
        return config, layers

    def _image(self, reference: Reference, stored: StoredImage) -> Image:
        return Image(
            reference=reference.canonical,
            digest=stored.digest,
            name=reference.name,
            config=stored.config,
            root=RootImage(path=self._store.root_path(stored.digest), format="squashfs", digest=stored.digest),
            size=stored.size,
            hints=stored.hints,
            user=stored.user,
            pin=self._store.pin(reference.canonical, self._platform),
        )


@asynccontextmanager
async def open_resolver(_config: object, context: OpenContext) -> AsyncGenerator[OciResolver, None]:
    """Open the store in ``context.home``. Nothing runs in the background."""
    store = ImageStore(context.home / "images")
    with _full_disk():
        await trio.to_thread.run_sync(store.prepare)
    yield OciResolver(store, context.environ)


@contextmanager
def _full_disk() -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise StorageFull("No space is left for the image store", hint="free some disk space") from error
