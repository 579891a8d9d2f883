"""The merge: layers applied one after the other to a tree in memory (OCI image-spec, "Applying Changesets").

Nothing here touches a file system. Where a name goes through a symbolic link that an earlier entry made, the link is
followed inside the tree, never above its root, as tools do that apply a layer to a mounted image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iii_core.errors import ImageUnsafe
from iii_registry_oci.layers.entry import Entry, Kind, printable, unsafe_entry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iii_registry_oci.layers.blob import Budget

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
AUFS = b".wh..wh."  # housekeeping of the aufs driver that old images hold
MAX_HOPS = 40  # Linux: MAXSYMLINKS


class Node:
    """A file, directory or link of the merged image; hard links share one.

    ``layer`` and ``entry`` say where its metadata and data come from; ``children`` is a directory's content; ``shared``
    tells that it has, or had, several names.
    """

    __slots__ = ("children", "entry", "layer", "shared")

    def __init__(self, layer: int, entry: Entry) -> None:
        self.layer = layer
        self.entry = entry
        self.children: dict[bytes, Node] = {}
        self.shared = False


def implicit_directory() -> Entry:
    """What a directory is like that no layer describes."""
    return Entry(Kind.DIRECTORY, b"", 0o755, 0, 0, 0, b"", 0, 0, ())


class Tree:
    """A root file system in the making. Layers come from the base to the top.

    ``newest`` is the latest modification time that any layer named.
    """

    def __init__(self, budget: Budget) -> None:
        self.root = Node(0, implicit_directory())
        self.newest = 0
        self._budget = budget
        self._layer = -1
        self._label = ""
        self._parents: dict[bytes, Node] = {}

    def begin_layer(self, label: str) -> None:
        """What is removed and applied from now on belongs to the next layer; ``label`` names it in errors."""
        self._layer += 1
        self._label = label
        self._parents.clear()

    def remove(self, entry: Entry) -> None:
        """Apply a whiteout to what the lower layers made, so before any other entry of the layer."""
        parent, _, name = entry.path.rpartition(b"/")
        folder = self._directory(entry, parent, create=False)
        self._parents.clear()
        if folder is None:
            return
        if name == OPAQUE:
            folder.children.clear()
        elif not name.startswith(AUFS):
            folder.children.pop(name.removeprefix(WHITEOUT), None)

    def apply(self, entry: Entry) -> None:
        """Add or replace what the entry names. Raises `ImageUnsafe`."""
        self.newest = max(self.newest, entry.mtime)
        if not entry.path:
            if entry.kind is not Kind.DIRECTORY:
                raise self._unsafe(entry, "replaces the root of the image")
            self.root.entry, self.root.layer = entry, self._layer
            return
        parent, _, name = entry.path.rpartition(b"/")
        folder = self._parents.get(parent)
        if folder is None:
            folder = self._directory(entry, parent, create=True)
            assert folder is not None
            self._parents[parent] = folder
        before = folder.children.get(name)
        if before is not None and entry.kind is before.entry.kind is Kind.DIRECTORY:
            before.entry, before.layer = entry, self._layer
            return
        node = self._target(entry) if entry.kind is Kind.HARDLINK else Node(self._layer, entry)
        folder.children[name] = node
        if before is not None and before.entry.kind in (Kind.DIRECTORY, Kind.SYMLINK):
            self._parents.clear()

    def find(self, path: bytes) -> Node | None:
        """What ``path`` leads to, symbolic links followed; None where there is nothing."""
        for _ in range(MAX_HOPS):
            parent, _, name = path.rpartition(b"/")
            try:
                folder = self._directory(self.root.entry, parent, create=False)
            except ImageUnsafe:
                return None
            node = folder.children.get(name) if folder else None
            if node is None or node.entry.kind is not Kind.SYMLINK:
                return node
            link = node.entry.link
            path = link.lstrip(b"/") if link.startswith(b"/") else parent + b"/" + link
        return None

    def walk(self) -> Iterator[tuple[bytes, Node]]:
        """All paths below the root, a directory before what is in it."""
        pending = [(b"", self.root)]
        while pending:
            prefix, folder = pending.pop()
            for name, node in folder.children.items():
                path = prefix + name
                yield path, node
                if node.children:
                    pending.append((path + b"/", node))

    def _target(self, entry: Entry) -> Node:
        parent, _, name = entry.link.rpartition(b"/")
        folder = self._directory(entry, parent, create=False)
        node = folder.children.get(name) if folder else None
        if node is None:
            raise self._unsafe(entry, f"is a hard link to '{printable(entry.link)}', which is not there (yet)")
        if node.entry.kind is Kind.DIRECTORY:
            raise self._unsafe(entry, f"is a hard link to the directory '{printable(entry.link)}'")
        node.shared = True
        return node

    def _directory(self, entry: Entry, path: bytes, *, create: bool) -> Node | None:
        """The directory ``path`` leads to, symbolic links followed; None where there is none and none may be made."""
        trail = [self.root]
        pending = path.split(b"/")[::-1]
        hops = 0
        while pending:
            name = pending.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                if len(trail) > 1:
                    trail.pop()
                continue
            node = trail[-1].children.get(name)
            if node is None:
                if not create:
                    return None
                node = trail[-1].children[name] = self._make_directory()
            if node.entry.kind is Kind.SYMLINK:
                hops += 1
                if hops > MAX_HOPS:
                    raise self._unsafe(entry, "goes through too many symbolic links")
                if node.entry.link.startswith(b"/"):
                    del trail[1:]
                pending += node.entry.link.split(b"/")[::-1]
            elif node.entry.kind is not Kind.DIRECTORY:
                if not create:
                    return None
                raise self._unsafe(entry, "lies below something that is no directory")
            else:
                trail.append(node)
                if len(trail) > self._budget.limits.depth + 1:
                    raise self._unsafe(entry, f"is more than {self._budget.limits.depth} levels deep")
        return trail[-1]

    def _make_directory(self) -> Node:
        self._budget.spend_entries()  # else one entry could make thousands, through symbolic links
        return Node(self._layer, implicit_directory())

    def _unsafe(self, entry: Entry, reason: str) -> ImageUnsafe:
        return unsafe_entry(self._label, entry.path, reason)


def is_whiteout(entry: Entry) -> bool:
    """Whether the entry removes something instead of adding it. Raises ValueError for one that names nothing."""
    parent, _, name = entry.path.rpartition(b"/")
    if WHITEOUT not in entry.path:
        return False
    if name in (WHITEOUT, WHITEOUT + b".", WHITEOUT + b".."):
        raise ValueError("is a whiteout of nothing that has a name")
    if any(part.startswith(WHITEOUT) for part in parent.split(b"/")) and not entry.path.startswith(AUFS):
        raise ValueError("lies below a whiteout")
    return name.startswith(WHITEOUT) or entry.path.startswith(AUFS)
