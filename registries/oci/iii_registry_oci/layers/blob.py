"""Reading a layer: decompressed on the fly, bounded, and true to both of its digests.

Nothing that a `LayerReader` hands out is known to be true before its ``finish`` returned.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import zstandard

from iii_core.errors import DigestMismatch, ImageUnsafe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from iii_registry_oci.layers.limits import Limits

CHUNK = 256 * 1024
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP = 16 + zlib.MAX_WBITS  # zlib's word for "a gzip member"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_WINDOW = 128 * 1024 * 1024  # what the zstd program takes without being asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A stored layer: ``digest`` and ``size`` of the blob as it is, ``diff_id`` of the tar archive in it."""

    path: Path
    digest: str
    size: int
    diff_id: str


class Budget:
    """What is left of an image's limits; its layers share one."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._bytes = limits.total
        self._entries = limits.entries

    def spend_bytes(self, count: int) -> None:
        """Raises `ImageUnsafe` once the layers hold more bytes than an image may."""
        self._bytes -= count
        if self._bytes < 0:
            raise ImageUnsafe(f"The image's layers unpack to more than {self.limits.total} bytes", hint=_HINT)

    def spend_entry(self) -> None:
        """Raises `ImageUnsafe` once the layers hold more entries than an image may."""
        self._entries -= 1
        if self._entries < 0:
            raise ImageUnsafe(f"The image's layers hold more than {self.limits.entries} entries", hint=_HINT)


_HINT = "such an image is not unpacked; ask its author what is in it"


class LayerReader:
    """The tar archive in a layer, from its beginning to its end.

    Args:
        blob: the stored blob, at its beginning.
        layer: what it should be.
        budget: what the image may still unpack to.
        moved: told the blob's bytes read since it was last told.
        check: keep what `finish` needs; False for reading what was checked before.
    """

    def __init__(
        self, blob: IO[bytes], layer: Layer, budget: Budget, moved: Callable[[int], None], *, check: bool = True
    ) -> None:
        self._blob = blob
        self._layer = layer
        self._budget = budget
        self._moved = moved
        self._packed = hashlib.sha256()
        self._plain = hashlib.sha256()
        self._check = check
        self._size = 0
        self._unpacked = 0
        self._blob_chunks = self._read_blob()
        self._chunks = self._unpack()
        self._chunk = b""
        self._at = 0
        self.position = 0

    def read(self, count: int) -> bytes:
        """Exactly ``count`` bytes, or fewer where the archive ends."""
        end = self._at + count
        if end <= len(self._chunk):  # nearly always
            data = self._chunk[self._at : end]
            self._at = end
            self.position += count
            return data
        return b"".join(self.pieces(count))

    def pieces(self, count: int) -> Iterator[bytes]:
        """The next ``count`` bytes in pieces of at most 1 MiB; fewer where the archive ends."""
        while count and (self._at < len(self._chunk) or self._next()):
            piece = self._chunk[self._at : self._at + count]
            self._at += len(piece)
            self.position += len(piece)
            count -= len(piece)
            yield piece

    def skip(self, count: int) -> bool:
        """Pass over ``count`` bytes; False where the archive ends before."""
        while count:
            left = len(self._chunk) - self._at
            if not left:
                if not self._next():
                    return False
                continue
            step = min(left, count)
            self._at += step
            self.position += step
            count -= step
        return True

    def finish(self) -> None:
        """Read to the end and check size and digests. Raises `DigestMismatch`."""
        while self._next():
            pass
        self.check_blob()
        self._compare("The archive in layer", self._layer.diff_id, self._plain.hexdigest())

    def check_blob(self) -> None:
        """Read the rest of the blob, packed, and check it; the archive cannot be read on after that.

        For telling a damaged blob from a hostile one. Raises `DigestMismatch`.
        """
        for _ in self._blob_chunks:
            pass
        if self._size != self._layer.size:
            raise DigestMismatch(
                f"Layer {self._layer.digest} has {self._size} bytes where its manifest says {self._layer.size}"
            )
        self._compare("Layer", self._layer.digest, self._packed.hexdigest())

    def _compare(self, what: str, expected: str, actual: str) -> None:
        if expected != f"sha256:{actual}":
            raise DigestMismatch(f"{what} {self._layer.digest} has the digest sha256:{actual}, expected {expected}")

    def _next(self) -> bool:
        self._chunk, self._at = next(self._chunks, b""), 0
        return bool(self._chunk)

    def _unpack(self) -> Iterator[bytes]:
        limits = self._budget.limits
        ceiling = max(limits.ratio_floor, limits.ratio * self._layer.size)
        for chunk in self._decode():
            self._unpacked += len(chunk)
            if self._unpacked > ceiling:
                raise ImageUnsafe(
                    f"Layer {self._layer.digest} unpacks to more than {limits.ratio} times its size", hint=_HINT
                )
            self._budget.spend_bytes(len(chunk))
            if self._check:
                self._plain.update(chunk)
            yield chunk

    def _decode(self) -> Iterator[bytes]:
        """By the first bytes, as other tools do: media types are often wrong about the compression."""
        first = next(self._blob_chunks, b"")
        try:
            if first.startswith(_GZIP_MAGIC):
                yield from _gunzip(first, self._blob_chunks)
            elif first.startswith(_ZSTD_MAGIC):
                yield from _unzstd(first, self._blob_chunks)
            elif first:
                yield first
                yield from self._blob_chunks
        except (zlib.error, zstandard.ZstdError, EOFError) as error:
            raise ImageUnsafe(f"Layer {self._layer.digest} is not well compressed: {error}") from error

    def _read_blob(self) -> Iterator[bytes]:
        while chunk := self._blob.read(CHUNK):
            self._size += len(chunk)
            if self._size > self._layer.size:
                raise DigestMismatch(
                    f"Layer {self._layer.digest} has more than the {self._layer.size} bytes of its manifest"
                )
            if self._check:
                self._packed.update(chunk)
            self._moved(len(chunk))
            yield chunk


def _gunzip(data: bytes, more: Iterator[bytes]) -> Iterator[bytes]:
    """All members of a gzip file (RFC 1952 §2.2), in pieces of at most 4 * `CHUNK`; checks each CRC."""
    member = zlib.decompressobj(_GZIP)
    begun = False  # whether `member` has seen a byte
    while True:
        plain = member.decompress(data, 4 * CHUNK)
        begun = begun or bool(data)
        if plain:
            yield plain
        if member.eof:
            data, member, begun = member.unused_data, zlib.decompressobj(_GZIP), False
        else:
            data = member.unconsumed_tail
        if not data and len(plain) < 4 * CHUNK:
            data = next(more, b"")
            if not data:
                break
    if begun:
        raise EOFError("it ends too early")


def _unzstd(data: bytes, more: Iterator[bytes]) -> Iterator[bytes]:
    """All frames of a zstd file, in pieces of at most 4 * `CHUNK`."""
    unpacker = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    with unpacker.stream_reader(_Source(data, more), read_across_frames=True) as reader:
        while plain := reader.read(4 * CHUNK):
            yield plain


class _Source(io.BytesIO):
    """Chunks as the file that zstandard wants to read from; the chunks' size is its own business."""

    def __init__(self, first: bytes, more: Iterator[bytes]) -> None:
        super().__init__()
        self._first: bytes | None = first
        self._more = more

    def read(self, _size: int | None = -1, /) -> bytes:
        first, self._first = self._first, None
        return next(self._more, b"") if first is None else first
