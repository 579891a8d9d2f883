"""Kernels of a few bytes, for guests that never come to life."""

from __future__ import annotations

import struct
from pathlib import Path

HANG = bytes.fromhex("fa f4 eb fd")  # cli; hlt; jmp to hlt
FLOOD = bytes.fromhex("fa 66 ba f8 03 b0 41") + bytes.fromhex("ee eb fd")  # dx = COM1, al = 'A'; out; jmp to out
LINES = bytes.fromhex("fa 66 ba f8 03 b0 41 b9 3c 00 00 00 ee e2 fd b0 0a ee eb f1")  # sixty of them to a line
_BASE = 0x100000
_HEADERS = 0x1000


def write_kernel(folder: Path, code: bytes, modules: Path) -> Path:
    """A folder as `iii_sandbox_guest.kernel` knows it; the kernel is ``code``, entered in 32-bit mode (PVH).

    elf(5); the note is XEN_ELFNOTE_PHYS32_ENTRY (Xen's elfnote.h).
    """
    entry = _BASE + _HEADERS
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", entry)
    note_at = 64 + 2 * 56
    load = struct.pack("<IIQQQQQQ", 1, 7, _HEADERS, entry, entry, len(code), len(code), 0x1000)
    notes = struct.pack("<IIQQQQQQ", 4, 4, note_at, 0, 0, len(note), len(note), 4)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = ident + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, entry, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    folder.mkdir()
    (folder / "vmlinux").write_bytes((header + load + notes + note).ljust(_HEADERS, b"\0") + code)
    (folder / "modules").symlink_to(modules)
    return folder
