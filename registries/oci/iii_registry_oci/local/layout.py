"""Image layouts (OCI image-spec, ``image-layout.md``) in a folder or a tar archive.

Only what the wanted image needs is read, by names that are made here: ``index.json`` and ``blobs/sha256/HEX``.
"""

from __future__ import annotations

import re
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol

from iii_core.errors import DigestMismatch, ImageNotFound, ImageUnsafe
from iii_registry_oci.layers.entry import Kind, printable, unsafe_entry
from iii_registry_oci.local.archive import read_archive
from iii_registry_oci.local.files import HOSTILE, Folder, readable
from iii_registry_oci.manifest import INDEX_TYPES, MANIFEST_TYPES, Descriptor, Index, check_digest, parse_document

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from iii_registry_oci.layers.limits import Limits
    from iii_registry_oci.layers.spool import ReaderAt
    from iii_registry_oci.reference import LocalReference

INDEX = "index.json"
_FILES = re.compile(rb"oci-layout|index\.json|blobs/sha256/[0-9a-f]{64}")
_FOLDERS = (b"", b"blobs", b"blobs/sha256")
_PASSED_OVER = (b"manifest.json", b"repositories")  # `docker save` writes its own format into the same archive
_SHOWN_MAX = 20


class Section(NamedTuple):
    """A part of a file: ``size`` bytes from ``at`` on."""

    content: ReaderAt
    at: int
    size: int

    def pieces(self) -> Iterator[bytes]:
        """Its bytes; fewer than ``size`` if the file was cut short."""
        return self.content.pieces(self.at, self.size)


class Files(Protocol):
    """The files of a layout."""

    def open(self, name: str) -> AbstractContextManager[Section]:
        """A file for the scope's time. Raises `FileNotFoundError`, `OSError`, `ImageUnsafe`."""
        ...


class FolderFiles:
    """A layout's folder."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    @contextmanager
    def open(self, name: str) -> Generator[Section]:
        """See `Files.open`."""
        with closing(self._folder.open(name)) as file:
            yield Section(file, 0, file.size)


class ArchiveFiles:
    """A layout's archive.

    Args:
        content: the plain archive.
        label: names it in errors.
        limits: of its entries.
        tick: called for each entry; what it raises ends the work.

    Raises:
        ImageUnsafe: it holds anything but the files and folders of a layout, or one of them twice.
    """

    def __init__(self, content: ReaderAt, label: str, limits: Limits, tick: Callable[[], object]) -> None:
        self._sections: dict[str, Section] = {}
        for entry in read_archive(content, label, limits, tick):
            if entry.kind is Kind.DIRECTORY and entry.path in _FOLDERS:
                continue
            if entry.kind is not Kind.FILE:
                raise unsafe_entry(label, entry.path, "is no regular file, and no folder of an image layout")
            if not _FILES.fullmatch(entry.path) and entry.path not in _PASSED_OVER:
                raise unsafe_entry(label, entry.path, "does not belong into an image layout")
            name = entry.path.decode()
            if name in self._sections:
                raise unsafe_entry(label, entry.path, "comes twice")
            self._sections[name] = Section(content, entry.offset, entry.size)

    @contextmanager
    def open(self, name: str) -> Generator[Section]:
        """See `Files.open`."""
        if name not in self._sections:
            raise FileNotFoundError(name)
        yield self._sections[name]


class Layout:
    """An image layout. Methods block; ``tick`` is called for each piece, and what it raises ends the work."""

    def __init__(self, files: Files, reference: LocalReference, limits: Limits) -> None:
        self._files = files
        self._reference = reference
        self._limits = limits

    def manifest(self) -> bytes:
        """The manifest or index that the reference means. Raises `ImageNotFound`, `ImageUnsafe`, `DigestMismatch`."""
        index = parse_document(self._read(INDEX), self._limits)
        if not isinstance(index, Index):
            raise ImageUnsafe(f"The {INDEX} of {self._reference.canonical} is no index", hint=HOSTILE)
        return self.document(self._select(index))

    def document(self, descriptor: Descriptor) -> bytes:
        """The manifest or index of ``descriptor``. Raises like `manifest`."""
        raw = self._read(_blob_name(descriptor.digest))
        check_digest(raw, descriptor.digest, f"A manifest of {self._reference.canonical}")
        return raw

    def copy(self, digest: str, size: int, target: Path, moved: Callable[[int], object]) -> None:
        """Copy the blob ``digest`` to the new file ``target``; ``moved`` is told the bytes of each piece.

        Its digest is for whoever reads the copy to check. Raises `ImageNotFound`, `ImageUnsafe`, and `DigestMismatch`
        where it does not have ``size`` bytes.
        """
        with self._open(_blob_name(digest)) as blob:
            copied = 0
            if blob.size == size:
                with target.open("xb", buffering=0) as file:
                    for piece in blob.pieces():
                        copied += file.write(piece)
                        moved(len(piece))
            if copied != size:
                raise DigestMismatch(
                    f"{self._reference.canonical}: the blob {digest} has {blob.size} bytes, its manifest says {size}"
                )

    def _select(self, index: Index) -> Descriptor:
        """By the name in its annotations, as skopeo has it; without a tag it is the only one."""
        wanted = self._reference.selector
        if wanted is None and len(index.manifests) == 1:
            return index.manifests[0]
        known = [item for item in index.manifests if item.media_type in (*INDEX_TYPES, *MANIFEST_TYPES)]
        for item in known:
            if wanted is not None and item.ref_name == wanted:
                return item
        names = [printable(item.ref_name.encode(), 60) for item in known if item.ref_name][:_SHOWN_MAX]
        raise ImageNotFound(
            f"{self._reference.canonical}: there is no such image"
            if wanted
            else f"{self._reference.canonical} holds {len(index.manifests)} images",
            hint="check the path and the tag" + (f", which is one of {', '.join(names)}" if names else ""),
            details={"tags": names},
        )

    def _read(self, name: str) -> bytes:
        with self._open(name) as section:
            if section.size > self._limits.manifest:
                raise ImageUnsafe(
                    f"{self._reference.canonical}: {name} has more than {self._limits.manifest} bytes", hint=HOSTILE
                )
            return b"".join(section.pieces())

    @contextmanager
    def _open(self, name: str) -> Generator[Section]:
        with readable(self._reference):
            try:
                opened = self._files.open(name)
                with opened as section:
                    yield section
            except FileNotFoundError:
                raise ImageNotFound(
                    f"{self._reference.canonical}: there is no such image (it lacks {name})",
                    hint="check the path and the tag",
                ) from None


def _blob_name(digest: str) -> str:
    """Digests are checked where documents are parsed."""
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"
