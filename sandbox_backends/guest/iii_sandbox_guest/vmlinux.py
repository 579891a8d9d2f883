"""From a compressed kernel (bzImage) to the kernel itself, which boots faster and is all that some VMMs take. Pure.

The kernel's Documentation/arch/x86/boot.rst says where the payload is, xen/interface/elfnote.h what makes a ``vmlinux``
bootable by itself (PVH).
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Final

_SETUP_SECTORS: Final = 0x1F1
_MAGIC: Final = 0x202
_VERSION: Final = 0x20E
_PAYLOAD: Final = 0x248
_PVH_ENTRY: Final = 18  # XEN_ELFNOTE_PHYS32_ENTRY
_PT_NOTE: Final = 4
MAX_VMLINUX: Final = 256 << 20


def read_release(image: bytes) -> str | None:
    """The release (``uname -r``) that a bzImage says it is; None if ``image`` is no bzImage."""
    if image[_MAGIC : _MAGIC + 4] != b"HdrS":
        return None
    start = int.from_bytes(image[_VERSION : _VERSION + 2], "little") + 0x200
    words = image[start : start + 256].split(b"\0", 1)[0].split()
    return words[0].decode(errors="replace") if words else None


def extract_vmlinux(image: bytes) -> bytes | None:
    """The ``vmlinux`` inside a bzImage, if it can be unpacked here and boots by itself (PVH); else None."""
    if image[_MAGIC : _MAGIC + 4] != b"HdrS":
        return None
    offset, length = struct.unpack_from("<II", image, _PAYLOAD)
    start = (image[_SETUP_SECTORS] + 1) * 512 + offset
    payload = image[start : start + length]
    for magic, decompress in _FORMATS.items():
        if payload.startswith(magic):
            try:
                vmlinux = decompress(payload)
            except (ValueError, EOFError, IndexError, OSError, zlib.error, lzma.LZMAError):
                return None
            return vmlinux if has_pvh_entry(vmlinux) else None
    return None


def has_pvh_entry(vmlinux: bytes) -> bool:
    """Whether an ELF kernel holds the note that tells a VMM where to enter it."""
    try:
        if vmlinux[:6] != b"\x7fELF\x02\x01":
            return False
        at, size, count = struct.unpack_from("<Q14xHH", vmlinux, 32)
        for number in range(count):
            kind, offset, length = struct.unpack_from("<I4xQ16xQ", vmlinux, at + number * size)
            if kind == _PT_NOTE and _PVH_ENTRY in _note_types(vmlinux[offset : offset + length]):
                return True
    except (struct.error, OverflowError):
        pass
    return False


def _note_types(notes: bytes) -> set[int]:
    found: set[int] = set()
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, at)
        name = notes[at + 12 : at + 12 + name_size]
        if name == b"Xen\0":
            found.add(kind)
        at += 12 + (name_size + 3 & ~3) + (size + 3 & ~3)
    return found


def decompress_lz4(data: bytes) -> bytes:
    """What is in LZ4's legacy frame format (lz4_Frame_format.md, "Legacy frame"), up to the first thing that is not."""
    out = bytearray()
    at = 4
    while at + 4 <= len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        at += 4
        if size == 0 or at + size > len(data):
            break  # the kernel's build appends the size of the whole
        _decompress_block(data, at, at + size, out)
        if len(out) > MAX_VMLINUX:
            raise ValueError("more than a kernel can be")
        at += size
    return bytes(out)


def _decompress_block(data: bytes, at: int, end: int, out: bytearray) -> None:
    """Append one block (lz4_Block_format.md)."""
    base = len(out)
    while at < end:
        token = data[at]
        at += 1
        literals = token >> 4
        if literals == 15:
            while True:
                more = data[at]
                at += 1
                literals += more
                if more != 255:
                    break
        out += data[at : at + literals]
        at += literals
        if at >= end:
            return
        distance = data[at] | data[at + 1] << 8
        at += 2
        length = (token & 15) + 4
        if length == 19:
            while True:
                more = data[at]
                at += 1
                length += more
                if more != 255:
                    break
        start = len(out) - distance
        if distance == 0 or start < base:
            raise ValueError("a match from before the block")
        if distance >= length:
            out += out[start : start + length]
        else:
            out += (out[start:] * (length // distance + 1))[:length]


def _gunzip(data: bytes) -> bytes:
    return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16).decompress(data, MAX_VMLINUX)


def _unxz(data: bytes) -> bytes:
    return lzma.LZMADecompressor().decompress(data, MAX_VMLINUX)


def _bunzip2(data: bytes) -> bytes:
    return bz2.BZ2Decompressor().decompress(data, MAX_VMLINUX)


_FORMATS: Final[Mapping[bytes, Callable[[bytes], bytes]]] = {
    b"\x1f\x8b\x08": _gunzip,
    b"\xfd7zXZ\0": _unxz,
    b"\x5d\0\0\0": _unxz,
    b"BZh": _bunzip2,
    b"\x02\x21\x4c\x18": decompress_lz4,
}
