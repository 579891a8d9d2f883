"""A root image with nothing in it: enough to boot the agent alone, which is what a probe wants."""

from __future__ import annotations

import base64
import zlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

# mksquashfs empty-folder x -all-root -no-xattrs -no-exports -mkfs-time 0 -all-time 0 -comp gzip; then zlib, base85
_SQUASHFS: Final = (
    "c-qS-E-YqbfB_~j$;cqc;K0Plz`}q4tx&oaO8<v~1Sr28jfTmKGF043PN_J3f`Qe5O<2I#Ig>#qpWz2f1G3^#FbYP&C>RB!U=)mkQ7{Td!6+C7"
    "qhJ)!6aWBoKO9g"
)


def write_empty_image(path: Path) -> None:
    """Write it, as squashfs."""
    path.write_bytes(zlib.decompress(base64.b85decode(_SQUASHFS)))
