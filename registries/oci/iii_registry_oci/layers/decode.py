"""Decompression of what strangers packed: pieces of bounded size, with bounded memory.

What is not well compressed raises `BROKEN`; how much it unpacks to is for the caller to bound.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from itertools import chain
from typing import TYPE_CHECKING

import zstandard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHUNK = 256 * 1024
BROKEN = (zlib.error, zstandard.ZstdError, lzma.LZMAError, EOFError)
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP = 16 + zlib.MAX_WBITS  # zlib's word for "a gzip member"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_WINDOW = 128 * 1024 * 1024  # what the zstd program takes without being asked
_XZ_MAGIC = b"\xfd7zXZ\0"
_XZ_MEMORY = 128 * 1024 * 1024  # twice what `xz -9` asks for
_BZIP2_MAGIC = b"BZh"


def decode(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """A layer's plain bytes, told by the first ones, as other tools do: media types often get the compression wrong."""
    first = next(chunks, b"")
    if first.startswith(_GZIP_MAGIC):
        yield from _gunzip(first, chunks)
    elif first.startswith(_ZSTD_MAGIC):
        yield from _unzstd(first, chunks)
    elif first:
        yield first
        yield from chunks


def is_packed(first: bytes) -> bool:
    """Whether a file that begins with these (at least six) bytes is one that `decode_archive` unpacks."""
    return first.startswith((_GZIP_MAGIC, _ZSTD_MAGIC, _XZ_MAGIC, _BZIP2_MAGIC))


def decode_archive(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """An image archive's plain bytes: what `decode` knows, and the other two that skopeo takes, xz and bzip2."""
    first = next(chunks, b"")
    if first.startswith(_XZ_MAGIC):
        return _unpack_streams(lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY), first, chunks)
    if first.startswith(_BZIP2_MAGIC):
        return _unpack_streams(bz2.BZ2Decompressor, first, chunks)
    return decode(chain((first,), chunks))


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


def _unpack_streams(
    begin: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor], data: bytes, more: Iterator[bytes]
) -> Iterator[bytes]:
    """All streams of an xz or bzip2 file, in pieces of at most 4 * `CHUNK`; zeros between them are padding."""
    while data or (data := next(more, b"").lstrip(b"\0")):
        stream = begin()
        while True:
            try:
                plain = stream.decompress(data, 4 * CHUNK)
            except OSError as error:  # what bz2 raises for data that is not bzip2
                raise EOFError(str(error)) from None
            if plain:
                yield plain
            if stream.eof:
                break
            data = next(more, b"") if stream.needs_input else b""
            if stream.needs_input and not data:
                raise EOFError("it ends too early")
        data = stream.unused_data.lstrip(b"\0")
