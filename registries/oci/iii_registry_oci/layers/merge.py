"""From layers to one tar stream, in two passes; memory grows with the entries of the image, not with its bytes.

The first pass reads every header and checks every digest, so nothing that the second one writes is unchecked. The
second one copies the data of the files that are left, layer by layer, in the order in which it finds them.
"""

from __future__ import annotations

import marshal
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from iii_core.errors import ImageUnsafe
from iii_registry_oci.layers import tarwrite
from iii_registry_oci.layers.blob import Budget, Layer, LayerReader
from iii_registry_oci.layers.entry import Entry, Kind, printable, unsafe_entry
from iii_registry_oci.layers.tarread import read_entries
from iii_registry_oci.layers.tree import Node, Tree, is_whiteout

if TYPE_CHECKING:
    from pathlib import Path

    from iii_registry_oci.layers.limits import Limits

MANIFEST = b"iii/worker.yaml"
MANIFEST_MAX = 64 * 1024
_BATCH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What the streamed image holds: entries, bytes of files, nodes left out, and its ``/iii/worker.yaml``."""

    entries: int
    data: int
    left_out: int
    manifest: bytes | None


class EntryLog:
    """The entries of one layer, kept in a file until the whole image is known to be within its limits."""

    def __init__(self, folder: Path) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by `close`)
        self._batch: list[tuple[object, ...]] = []
        self.whiteouts = False

    def append(self, entry: Entry, *, whiteout: bool) -> None:
        """Add an entry."""
        self.whiteouts = self.whiteouts or whiteout
        self._batch.append((whiteout, int(entry.kind), *entry[1:]))
        if len(self._batch) == _BATCH:
            self.flush()

    def flush(self) -> None:
        """Write what is not written yet."""
        marshal.dump(self._batch, self._file)
        self._batch = []

    def read(self, *, whiteouts: bool) -> Iterator[Entry]:
        """The whiteouts, or all others, in order."""
        end = self._file.seek(0, 2)
        self._file.seek(0)
        while self._file.tell() < end:
            for whiteout, kind, *rest in marshal.load(self._file):  # noqa: S302 (our own file, never outside this process)
                if whiteout is whiteouts:
                    yield Entry(Kind(kind), *rest)

    def close(self) -> None:
        """Drop the file."""
        self._file.close()


def merge(
    layers: Sequence[Layer],
    *,
    limits: Limits,
    scratch: Path,
    moved: Callable[[int], None],
    begin: Callable[[Entry, int], Callable[[bytes], object]],
) -> Merged:
    """Merge ``layers`` (base first) and write the result as a tar archive.

    Args:
        layers: each is opened and read twice.
        limits: what the image may hold.
        scratch: a folder for nameless temporary files.
        moved: told the bytes of the blobs read since it was last told; twice their sizes in the end.
        begin: called once all headers and digests are checked, with the root directory and the latest modification
            time; gives where to write.

    Raises:
        ImageUnsafe, DigestMismatch: before ``begin`` is called.
    """
    budget = Budget(limits)
    tree = _build_tree(layers, budget, scratch, moved)
    write = begin(tree.root.entry, tree.newest)
    plan = _Plan(tree, len(layers), limits, write)
    for index, layer in enumerate(layers):
        with layer.path.open("rb") as blob:
            plan.copy(LayerReader(blob, layer, Budget(limits), moved, check=False), index)
    write(tarwrite.END)
    return plan.result()


def _build_tree(layers: Sequence[Layer], budget: Budget, scratch: Path, moved: Callable[[int], None]) -> Tree:
    logs = [EntryLog(scratch) for _ in layers]
    labels = [f"Layer {index} ({layer.digest[:19]}…)" for index, layer in enumerate(layers, 1)]
    try:
        for layer, log, label in zip(layers, logs, labels, strict=True):
            with layer.path.open("rb") as blob:
                _scan(LayerReader(blob, layer, budget, moved), budget, label, log)
        tree = Tree(budget)
        for log, label in zip(logs, labels, strict=True):
            tree.begin_layer(label)
            if log.whiteouts:
                for entry in log.read(whiteouts=True):
                    tree.remove(entry)
            for entry in log.read(whiteouts=False):
                tree.apply(entry)
        return tree
    finally:
        for log in logs:
            log.close()


def _scan(reader: LayerReader, budget: Budget, label: str, log: EntryLog) -> None:
    try:
        for entry in read_entries(reader, budget, label):
            try:
                whiteout = is_whiteout(entry)
            except ValueError as error:
                raise unsafe_entry(label, entry.path, str(error)) from None
            log.append(entry, whiteout=whiteout)
        log.flush()
        reader.finish()
    except ImageUnsafe:
        reader.check_blob()  # a damaged layer is told by its digest, which says more than where reading it failed
        raise


class _Plan:
    """What to write when: names and links now, data as the layers come by."""

    def __init__(self, tree: Tree, layers: int, limits: Limits, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._files: list[dict[int, tuple[Node, list[bytes]]]] = [{} for _ in range(layers)]
        self._manifest_node = tree.find(MANIFEST)
        self._manifest: bytes | None = None
        self._entries = self._bytes = self._left_out = 0
        links: dict[int, bytes] = {}
        for path, node in tree.walk():
            if len(path) > limits.path:
                raise ImageUnsafe(f"The path '{printable(path)}' has {len(path)} bytes (at most {limits.path})")
            self._place(path, node, links)

    def _place(self, path: bytes, node: Node, links: dict[int, bytes]) -> None:
        kind = node.entry.kind
        if kind is Kind.SPECIAL:
            self._left_out += 1
            return
        self._entries += 1
        if kind is Kind.FILE:
            self._files[node.layer].setdefault(node.entry.offset, (node, []))[1].append(path)
        elif kind is Kind.DIRECTORY:
            self._write(tarwrite.header(path, node.entry))
        else:
            first = links.setdefault(id(node), path)
            self._write(tarwrite.header(path, node.entry) if first is path else tarwrite.hard_link(path, first))

    def copy(self, reader: LayerReader, layer: int) -> None:
        """Write the files whose data is in this layer. Raises `ImageUnsafe` if the layer changed meanwhile."""
        files = self._files[layer]
        for offset in sorted(files):
            node, paths = files.pop(offset)
            if not reader.skip(offset - reader.position):
                raise ImageUnsafe(f"Layer {layer + 1} became shorter while it was read")
            self._copy_file(reader, node, paths)

    def _copy_file(self, reader: LayerReader, node: Node, paths: Iterable[bytes]) -> None:
        first, *others = paths
        size = node.entry.size
        self._write(tarwrite.header(first, node.entry))
        keep: list[bytes] = []
        for piece in reader.pieces(size):
            self._write(piece)
            size -= len(piece)
            if node is self._manifest_node and node.entry.size <= MANIFEST_MAX:
                keep.append(piece)
        if size:
            raise ImageUnsafe("A layer became shorter while it was read")
        self._write(tarwrite.padding(node.entry.size))
        for path in others:
            self._write(tarwrite.hard_link(path, first))
        self._bytes += node.entry.size
        if node is self._manifest_node and node.entry.size <= MANIFEST_MAX:
            self._manifest = b"".join(keep)

    def result(self) -> Merged:
        """What was written."""
        return Merged(entries=self._entries, data=self._bytes, left_out=self._left_out, manifest=self._manifest)
