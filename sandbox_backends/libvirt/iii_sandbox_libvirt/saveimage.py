"""libvirt's file of a saved guest: a header, the domain's XML, and QEMU's stream (libvirt's ``qemu_saveimage.h``).

libvirt restores a guest under the name and with the files that it had. Several guests from one saved state, each with
files of its own, take an edit of that XML; all else is handed on as it is.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from iii_core.errors import SnapshotUnusable
from iii_core.project.files import open_own
from iii_sandbox_libvirt.render import ARGUMENT, COMMAND_LINE, NETDEV_STARTS, netdev, render_owner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import BinaryIO

    from iii_sandbox_libvirt.render import Guest

_HEADER: Final = struct.Struct("=16s5I56s")
_MAGIC: Final = b"LibvirtQemudSave"
_VERSION: Final = 2
_MAX_DATA: Final = 1 << 20
_PIECE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Description:
    """What precedes QEMU's stream: the XML, and libvirt's own notes (may be empty)."""

    xml: str
    notes: bytes
    was_running: int
    rest: bytes

    @classmethod
    def read(cls, file: BinaryIO) -> Description:
        """From the start of a file, which is then at QEMU's stream. Raises `SnapshotUnusable`."""
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size or head[:16] != _MAGIC:
            raise SnapshotUnusable("this is no saved state of libvirt's", hint="save it again")
        _, version, size, was_running, compressed, notes_at, rest = _HEADER.unpack(head)
        if version != _VERSION or compressed != 0 or not 0 < size <= _MAX_DATA or notes_at > size:
            raise SnapshotUnusable(f"a saved state of format {version}.{compressed} is not known", hint="save it again")
        data = file.read(size)
        xml, _, _ = data.partition(b"\0")
        notes = data[notes_at:].partition(b"\0")[0] if notes_at else b""
        return cls(xml.decode(), notes, was_running, rest)

    def to_bytes(self) -> bytes:
        """As it stands in a file."""
        data = self.xml.encode() + b"\0"
        notes_at = len(data) if self.notes else 0
        if self.notes:
            data += self.notes + b"\0"
        return _HEADER.pack(_MAGIC, _VERSION, len(data), self.was_running, 0, notes_at, self.rest) + data


def revise(xml: str, guest: Guest) -> str:
    """The same machine with another guest's name and files. Raises `SnapshotUnusable` for one built otherwise."""
    try:
        domain = ET.fromstring(xml)  # noqa: S314 - libvirt wrote it, into a private folder
    except ET.ParseError as error:
        raise SnapshotUnusable(f"the description in the saved state is damaged: {error}") from error
    _find(domain, "name").text = guest.name
    domain.remove(_find(domain, "uuid"))  # libvirt makes a new one: there may be several
    _find(domain, "devices/emulator").text = str(guest.emulator)
    _find(domain, "os/kernel").text = str(guest.kernel)
    _find(domain, "os/initrd").text = str(guest.initramfs)
    for disk in guest.disks:
        _find(domain, f"devices/disk[serial='{disk.serial}']/source").set("file", str(disk.path))
    _find(domain, "devices/serial/source").set("path", str(guest.console))
    for console in domain.iterfind("devices/console/source"):  # libvirt's second name of the same
        console.set("path", str(guest.console))
    _find(domain, "devices/channel/source").set("path", str(guest.link))
    if guest.owner is not None:
        _find(domain, "seclabel[@model='dac']/label").text = render_owner(guest.owner)
    for argument in domain.iterfind(f"{COMMAND_LINE}/{ARGUMENT}"):
        if guest.network is not None and argument.get("value", "").startswith(NETDEV_STARTS):
            argument.set("value", netdev(guest.network))
    return ET.tostring(domain, encoding="unicode")


def _find(domain: ET.Element, path: str) -> ET.Element:
    found = domain.find(path)
    if found is None:
        raise SnapshotUnusable(f"the saved machine has no {path}", hint="save it again")
    return found


def write_revised(source: Path, target: Path, edit: Callable[[str], str]) -> tuple[int, int]:
    """Copy a saved state of ours with its XML edited; size and checksum of ``source``.

    Raises OSError, `SnapshotUnusable`.
    """
    with open_own(source) as file, open(target, "xb", opener=private) as out:
        described = Description.read(file)
        start = file.tell()
        edited = Description(edit(described.xml), described.notes, described.was_running, described.rest)
        out.write(edited.to_bytes())
        file.seek(0)
        checksum, size = zlib.crc32(file.read(start)), start
        while piece := file.read(_PIECE):
            checksum, size = zlib.crc32(piece, checksum), size + len(piece)
            out.write(piece)
    return size, checksum


def measure(path: Path) -> tuple[int, int]:
    """Size and checksum (CRC-32) of a file: against damage, not against malice."""
    checksum = size = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            checksum, size = zlib.crc32(piece, checksum), size + len(piece)
    return size, checksum


def private(path: str, flags: int) -> int:
    """An opener of files for their owner alone."""
    return os.open(path, flags, 0o600)
