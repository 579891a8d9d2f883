"""From layers to one tar stream; memory grows with the entries of the image, not with its bytes.

Every layer is unpacked into a spool while its digests are checked, its entries are counted and then applied to a tree,
and what the tree holds in the end is written. So nothing is written that is unchecked, and no blob is read twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iii_core.errors import ImageUnsafe
from iii_registry_oci.layers import tarwrite
from iii_registry_oci.layers.blob import Budget, Layer, Unpacker
from iii_registry_oci.layers.entry import Entry, Kind, printable, unsafe_entry
from iii_registry_oci.layers.spool import Spool
from iii_registry_oci.layers.tarread import count_headers, read_entries
from iii_registry_oci.layers.tree import Node, Tree, is_whiteout

if TYPE_CHECKING:
    from pathlib import Path

    from iii_registry_oci.layers.limits import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What the streamed image holds: entries, bytes of files, nodes left out, and the wanted files that it has."""

    entries: int
    data: int
    left_out: int
    files: Mapping[bytes, bytes]


def merge(
    layers: Sequence[Layer],
    *,
    limits: Limits,
    scratch: Path,
    moved: Callable[[int], None],
    begin: Callable[[Entry, int], Callable[[bytes], object]],
    wanted: Mapping[bytes, int],
) -> Merged:
    """Merge ``layers`` (base first) and write the result as a tar archive.

    Args:
        layers: each is opened and read once.
        limits: what the image may hold.
        scratch: a folder for nameless temporary files, as large together as the layers' archives.
        moved: told the bytes of the blobs read since it was last told, by several threads.
        begin: called once all headers and digests are checked, with the root directory and the latest modification
            time; gives where to write.
        wanted: paths of files whose content is wanted too, and the most bytes that they may have.

    Raises:
        ImageUnsafe, DigestMismatch: before ``begin`` is called, but for a path that is too long by way of links.
    """
    budget = Budget(limits)
    with ExitStack() as open_spools:
        spools = [open_spools.enter_context(closing(Spool(scratch))) for _ in layers]
        Unpacker(budget, moved).unpack(layers, spools)
        labels = [f"Layer {index} ({layer.digest[:19]}…)" for index, layer in enumerate(layers, 1)]
        tree = _build_tree(spools, labels, budget)
        found = {path: _content(tree, spools, path, most) for path, most in wanted.items()}
        writer = _Writer(spools, limits, begin(tree.root.entry, tree.newest))
        writer.require_few_names(b"/", tree.root)
        for path, node in tree.walk():
            writer.add(path, node)
        return writer.finish({path: data for path, data in found.items() if data is not None})


def _build_tree(spools: Sequence[Spool], labels: Sequence[str], budget: Budget) -> Tree:
    expected = Budget(budget.limits)
    for spool in spools:  # before any entry is kept: a bomb of them shall cost no memory
        expected.spend_entries(count_headers(spool, budget.limits.entries))
    tree = Tree(budget)
    for spool, label in zip(spools, labels, strict=True):
        tree.begin_layer(label)
        for entry in _without_whiteouts(spool, budget, label, tree):
            tree.apply(entry)
    return tree


def _without_whiteouts(spool: Spool, budget: Budget, label: str, tree: Tree) -> list[Entry]:
    """The entries of a layer, once its whiteouts removed what lower layers had."""
    entries: list[Entry] = []
    for entry in read_entries(spool, budget, label):
        try:
            whiteout = is_whiteout(entry)
        except ValueError as error:
            raise unsafe_entry(label, entry.path, str(error)) from None
        if whiteout:
            tree.remove(entry)
        else:
            entries.append(entry)
    return entries


def _content(tree: Tree, spools: Sequence[Spool], path: bytes, most: int) -> bytes | None:
    node = tree.find(path)
    if node is None or node.entry.kind is not Kind.FILE or node.entry.size > most:
        return None
    return spools[node.layer].read(node.entry.offset, node.entry.size)


class _Writer:
    """Writes a tree."""

    def __init__(self, spools: Sequence[Spool], limits: Limits, write: Callable[[bytes], object]) -> None:
        self._spools = spools
        self._limits = limits
        self._write = write
        self._links: dict[int, bytes] = {}
        self._entries = self._bytes = self._left_out = 0

    def add(self, path: bytes, node: Node) -> None:
        """Write one name."""
        if len(path) > self._limits.path:
            raise ImageUnsafe(
                f"The path '{printable(path)}' has {len(path)} bytes (at most {self._limits.path})",
                hint="the image is damaged or hostile; nothing of it was stored",
            )
        self.require_few_names(path, node)
        kind = node.entry.kind
        if kind is Kind.SPECIAL:
            self._left_out += 1
            return
        self._entries += 1
        first = self._links.setdefault(id(node), path) if node.shared else path
        if first is not path:
            self._write(tarwrite.hard_link(path, first))
            return
        self._write(tarwrite.header(path, node.entry))
        if node.entry.size:
            self._copy(node)

    def require_few_names(self, path: bytes, node: Node) -> None:
        """Raises `ImageUnsafe` for a directory that would take too long to build."""
        if len(node.children) > self._limits.folder:
            raise ImageUnsafe(
                f"The directory '{printable(path)}' holds {len(node.children)} names (at most {self._limits.folder})",
                hint="spread its files over several directories",
            )

    def _copy(self, node: Node) -> None:
        size = node.entry.size
        for piece in self._spools[node.layer].pieces(node.entry.offset, size):
            self._write(piece)
        self._write(tarwrite.padding(size))
        self._bytes += size

    def finish(self, files: Mapping[bytes, bytes]) -> Merged:
        """End the archive."""
        self._write(tarwrite.END)
        return Merged(entries=self._entries, data=self._bytes, left_out=self._left_out, files=files)
