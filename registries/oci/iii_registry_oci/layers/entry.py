"""Entries of a layer, as the header parser finds them and the merge takes them."""

from __future__ import annotations

import enum
from typing import NamedTuple

from iii_core.errors import ImageUnsafe


class Kind(enum.IntEnum):
    """What an entry makes.

    ``SPECIAL`` is a device node or a FIFO: it takes the place of what was there, and is left out of the image (spec
    worker-cli §4: "skip device/fifo nodes"). Every sandbox has a ``/dev`` of its own, and a character device 0:0 would
    be a whiteout to the overlay file system that the image becomes part of.
    """

    FILE = 0
    DIRECTORY = 1
    SYMLINK = 2
    HARDLINK = 3
    SPECIAL = 4


class Entry(NamedTuple):
    """One entry of a layer, checked.

    Attributes:
        kind: see `Kind`.
        path: relative to the root, components joined by ``/``; empty for the root. Never holds ``.``, ``..`` or NUL.
        mode: permissions with setuid, setgid and sticky (12 bits).
        uid, gid: 0 … 2³²-2.
        mtime: seconds, 0 … 2³²-1 (what squashfs holds).
        link: a symlink's target as it is, or a hard link's target in the form of ``path``.
        offset: where a file's data begins in the layer's archive.
        size: bytes of a file's data.
        xattrs: (name, value) pairs that are kept.
    """

    kind: Kind
    path: bytes
    mode: int
    uid: int
    gid: int
    mtime: int
    link: bytes
    offset: int
    size: int
    xattrs: tuple[tuple[bytes, bytes], ...]


def unsafe_entry(label: str, name: bytes, reason: str) -> ImageUnsafe:
    """The error for an entry of the layer ``label``; ``reason`` is a predicate, such as ``is a whiteout``."""
    shown = printable(name)
    return ImageUnsafe(
        f"{label}: entry '{shown}' {reason}",
        hint="the image is damaged or hostile; nothing of it was stored",
        details={"entry": shown, "reason": reason},
    )


def printable(name: bytes, limit: int = 200) -> str:
    """A name from an image, fit for a message: control characters and the like escaped, length bounded."""
    text = name[: limit + 1].decode("utf-8", "backslashreplace")
    safe = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return safe if len(name) <= limit else safe[:limit] + "…"
