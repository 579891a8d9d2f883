"""How much of everything an image may hold (spec worker-cli §4, "Limits"; the rest is ours)."""

from __future__ import annotations

import errno
from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what says that a disk is full


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes are bytes; each limit is the greatest value that is still allowed.

    Attributes:
        total: uncompressed bytes of all layers.
        file: bytes of one file.
        entries: tar entries of all layers.
        folder: names in one directory (sqfstar looks each one up among those before it: the time grows by the square).
        depth: components of a path.
        layers: layers of an image.
        manifest: bytes of a manifest, an index or an image configuration.
        path: bytes of a path, and of a link's target (Linux: PATH_MAX).
        name: bytes of one component (Linux: NAME_MAX).
        pax: bytes of one extended header; room for 64 KiB of attributes in a wasteful encoding.
        ratio: uncompressed bytes for each compressed one, once a layer is larger than ``ratio_floor``.
        ratio_floor: see ``ratio``.
    """

    total: int = 10 * GIB
    file: int = 5 * GIB
    entries: int = 1_000_000
    folder: int = 32_768
    depth: int = 128
    layers: int = 500
    manifest: int = 4 * MIB
    path: int = 4095
    name: int = 255
    pax: int = MIB
    ratio: int = 250
    ratio_floor: int = 256 * MIB
