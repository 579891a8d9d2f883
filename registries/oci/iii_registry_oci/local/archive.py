"""Tar archives that hold images: unpacked in memory's and disk's bounds, and looked through before anything is used."""

from __future__ import annotations

import posixpath
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from iii_core.errors import ImageUnsafe
from iii_registry_oci.layers.blob import Budget
from iii_registry_oci.layers.decode import BROKEN, decode_archive, is_packed
from iii_registry_oci.layers.entry import Entry, Kind, unsafe_entry
from iii_registry_oci.layers.spool import ReaderAt, Spool
from iii_registry_oci.layers.tarread import BLOCK, count_headers, is_header, read_entries
from iii_registry_oci.local.files import HOSTILE, open_file, readable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

    from iii_registry_oci.layers.limits import Limits
    from iii_registry_oci.reference import LocalReference

ENTRIES_MAX = 16_384  # an image has at most 500 layers; `docker save` wrote four entries for each, of several images


@contextmanager
def open_archive(
    reference: LocalReference, scratch: Path, limits: Limits, tick: Callable[[], object]
) -> Generator[ReaderAt]:
    """The plain archive that a reference names, for the scope's time; blocks while it is decompressed.

    Args:
        reference: of a regular file; it is read in place unless it is compressed (gzip, zstd, xz, bzip2).
        scratch: where a compressed one is unpacked to, into a file without a name.
        limits: of what it may unpack to.
        tick: called for each piece; what it raises ends the work.

    Raises:
        ImageNotFound, ImageError: see `open_file`.
        ImageUnsafe: it is not well compressed, or unpacks to too much.
    """
    with closing(open_file(reference)) as file:
        with readable(reference):
            packed = is_packed(file.read(0, 6))
        if not packed:
            yield file
            return
        with closing(Spool(scratch)) as spool:
            with readable(reference):
                _unpack(file, spool, reference.canonical, limits, tick)
            yield spool


def _unpack(file: ReaderAt, spool: Spool, label: str, limits: Limits, tick: Callable[[], object]) -> None:
    most = min(limits.total, max(limits.ratio_floor, limits.ratio * file.size))
    try:
        for piece in decode_archive(file.pieces(0, file.size)):
            tick()
            if spool.size + len(piece) > most:
                raise ImageUnsafe(f"{label} unpacks to more than {most} bytes", hint=HOSTILE)
            spool.append(piece)
    except BROKEN as error:
        raise ImageUnsafe(f"{label} is not well compressed: {error}", hint=HOSTILE) from error


def read_archive(content: ReaderAt, label: str, limits: Limits, tick: Callable[[], object]) -> Iterator[Entry]:
    """The entries of an archive. ``label`` names it in errors. Raises `ImageUnsafe`."""
    if content.size and not is_header(content.read(0, BLOCK)):
        raise ImageUnsafe(f"{label} is no tar archive", hint="check the path")
    if count_headers(content, ENTRIES_MAX) > ENTRIES_MAX:
        raise ImageUnsafe(f"{label} holds more than {ENTRIES_MAX} entries", hint=HOSTILE)
    whole = replace(limits, entries=ENTRIES_MAX, file=limits.total)
    for entry in read_entries(content, Budget(whole), label):
        tick()
        yield entry


def check_docker_archive(content: ReaderAt, label: str, limits: Limits, tick: Callable[[], object]) -> None:
    """Whether an archive is such as ``docker save`` writes: files, folders, and links from one to the other.

    skopeo looks up names in it and unpacks nothing, so this is a second line; sparse files, which it would read for
    ever, are refused here alone. Raises `ImageUnsafe`.
    """
    for entry in read_archive(content, label, limits, tick):
        if entry.kind is Kind.SYMLINK:
            target = posixpath.normpath(posixpath.join(posixpath.dirname(entry.path), entry.link))
            if target.startswith((b"/", b"../")) or target == b"..":
                raise unsafe_entry(label, entry.path, "is a symbolic link out of the archive")
        elif entry.kind not in (Kind.FILE, Kind.DIRECTORY):
            raise unsafe_entry(label, entry.path, "is neither a file nor a folder nor a symbolic link")
