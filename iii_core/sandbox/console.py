"""A sandbox's console file: appended to by the launcher or VMM and the guest, read for error messages."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

TAIL_BYTES: Final = 4096
_CONTROL_SEQUENCE: Final = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|[@-Z\\-_])")
_UNSAFE: Final = re.compile(r"[^\x20-\x7e\n\t\u00a0-\U0010ffff]")


def open_console(path: Path) -> int:
    """Open for appending; the descriptor is the caller's. Its folder is made if need be."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def size_of(path: Path) -> int:
    """How long the console is so far; what comes later belongs to the next boot."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def tail_since(path: Path, start: int) -> str:
    """What was written after offset ``start``, at most the last `TAIL_BYTES`, as text that is safe to print."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(min(start, end), end - TAIL_BYTES))
            text = file.read(TAIL_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return ""
    return _UNSAFE.sub("\ufffd", _CONTROL_SEQUENCE.sub("", text.replace("\r\n", "\n"))).strip()
