"""Unpacking layers: each is read once, decompressed into a `Spool`, and true to both of its digests.

Layers are unpacked in threads, several at once: reading, hashing and decompressing all let go of the interpreter.
"""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from iii_core.errors import DigestMismatch, ImageUnsafe
from iii_registry_oci.layers.decode import BROKEN, CHUNK, decode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from iii_registry_oci.layers.limits import Limits
    from iii_registry_oci.layers.spool import Spool

THREADS_MAX = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A stored layer: ``digest`` and ``size`` of the blob as it is, ``diff_id`` of the tar archive in it."""

    path: Path
    digest: str
    size: int
    diff_id: str


class Budget:
    """What is left of an image's limits; its layers share one. Bytes may be spent by several threads at once."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._bytes = limits.total
        self._entries = limits.entries
        self._lock = threading.Lock()

    def spend_bytes(self, count: int) -> None:
        """Raises `ImageUnsafe` once the layers hold more bytes than an image may."""
        with self._lock:
            self._bytes -= count
            if self._bytes < 0:
                raise ImageUnsafe(f"The image's layers unpack to more than {self.limits.total} bytes", hint=_HINT)

    def spend_entries(self, count: int = 1) -> None:
        """Raises `ImageUnsafe` once the layers hold more entries than an image may."""
        self._entries -= count
        if self._entries < 0:
            raise ImageUnsafe(f"The image's layers hold more than {self.limits.entries} entries", hint=_HINT)


_HINT = "such an image is not unpacked; ask its author what is in it"


class Unpacker:
    """Unpacks the layers of an image.

    Args:
        budget: what the image may unpack to.
        moved: told the blobs' bytes read since it was last told; called from several threads.
    """

    def __init__(self, budget: Budget, moved: Callable[[int], None]) -> None:
        self._budget = budget
        self._moved = moved
        self._abandoned = False

    def unpack(self, layers: Sequence[Layer], spools: Sequence[Spool]) -> None:
        """Fill the layers' spools. All digests are checked when it returns.

        Raises:
            ImageUnsafe, DigestMismatch: of the lowest layer that fails; the work on the others is given up then.
        """
        with ThreadPoolExecutor(min(len(layers), os.cpu_count() or 1, THREADS_MAX)) as threads:
            pending = [threads.submit(self._unpack_layer, *pair) for pair in zip(layers, spools, strict=True)]
            try:
                for layer in pending:
                    layer.result()
            finally:
                self._abandoned = True
                threads.shutdown(cancel_futures=True)

    def _unpack_layer(self, layer: Layer, spool: Spool) -> None:
        limits = self._budget.limits
        ceiling = max(limits.ratio_floor, limits.ratio * layer.size)
        plain = hashlib.sha256()
        with layer.path.open("rb") as file:
            blob = _Blob(file, layer, self._moved)
            try:
                for chunk in decode(blob.chunks):
                    plain.update(chunk)
                    spool.append(chunk)
                    self._budget.spend_bytes(len(chunk))
                    if spool.size > ceiling:
                        raise ImageUnsafe(
                            f"Layer {layer.digest} unpacks to more than {limits.ratio} times its size", hint=_HINT
                        )
                    if self._abandoned:
                        return
            except BROKEN as error:
                blob.finish()  # a damaged layer is told by its digest, which says more than where reading it failed
                raise ImageUnsafe(f"Layer {layer.digest} is not well compressed: {error}") from error
            blob.finish()
        _compare("The archive in layer", layer, layer.diff_id, plain.hexdigest())


class _Blob:
    """A layer's blob in chunks, none of them more than its size allows."""

    def __init__(self, file: IO[bytes], layer: Layer, moved: Callable[[int], None]) -> None:
        self._file = file
        self._layer = layer
        self._moved = moved
        self._packed = hashlib.sha256()
        self._size = 0
        self.chunks = self._read()

    def finish(self) -> None:
        """Read what is left, and check all. Raises `DigestMismatch`."""
        for _ in self.chunks:
            pass
        if self._size != self._layer.size:
            raise DigestMismatch(
                f"Layer {self._layer.digest} has {self._size} bytes where its manifest says {self._layer.size}"
            )
        _compare("Layer", self._layer, self._layer.digest, self._packed.hexdigest())

    def _read(self) -> Iterator[bytes]:
        while chunk := self._file.read(CHUNK):
            self._size += len(chunk)
            if self._size > self._layer.size:
                raise DigestMismatch(
                    f"Layer {self._layer.digest} has more than the {self._layer.size} bytes of its manifest"
                )
            self._packed.update(chunk)
            self._moved(len(chunk))
            yield chunk


def _compare(what: str, layer: Layer, expected: str, actual: str) -> None:
    if expected != f"sha256:{actual}":
        raise DigestMismatch(f"{what} {layer.digest} has the digest sha256:{actual}, expected {expected}")
