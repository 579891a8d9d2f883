"""libvirt's save file, read and written again: what is not ours to change stays as it is."""

from __future__ import annotations

import random
import struct
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from iii_sandbox_libvirt.render import render
from iii_sandbox_libvirt.saveimage import Description, measure, revise, write_revised
from iii_sandbox_libvirt.sparse import copy_sparse

from iii_core.errors import SnapshotUnusable

from .test_libvirt_render import GUEST

OTHER = replace(
    GUEST,
    name="iii-other",
    kernel=Path("/other/kernel"),
    initramfs=Path("/other/initramfs"),
    disks=tuple(replace(disk, path=Path("/other") / disk.path.name) for disk in GUEST.disks),
    link=Path("/other/link"),
    console=Path("/other/console"),
)


STREAM = b"QEVM" + bytes(range(256))


def saved_xml() -> str:
    """As libvirt writes it: with a uuid, and names of its own."""
    return render(GUEST).replace("<memory", "<uuid>12345678-1234-1234-1234-123456789012</uuid>\n  <memory", 1)


def file_of(folder: Path, notes: bytes, **changed: int) -> Path:
    xml = saved_xml().encode() + b"\0"
    data = xml + (notes + b"\0" if notes else b"")
    fields = {"version": 2, "size": len(data), "running": 1, "compressed": 0, "notes_at": len(xml) if notes else 0}
    fields |= changed
    path = folder / "memory"
    path.write_bytes(struct.pack("=16s5I56s", b"LibvirtQemudSave", *fields.values(), bytes(56)) + data + STREAM)
    return path


@pytest.mark.parametrize("notes", [b"", b"<cookie><slirpHelper/></cookie>"])
def test_only_the_description_changes(tmp_path: Path, notes: bytes) -> None:
    source, target = file_of(tmp_path, notes), tmp_path / "target"
    assert write_revised(source, target, lambda xml: revise(xml, OTHER)) == measure(source)
    with target.open("rb") as file:
        described = Description.read(file)
        assert file.read() == STREAM
    assert described.notes == notes
    assert described.was_running == 1
    wanted, got = (ET.canonicalize(xml, strip_text=True) for xml in (render(OTHER), described.xml))
    assert got == wanted
    assert target.stat().st_mode & 0o777 == 0o600


def test_as_it_was(tmp_path: Path) -> None:
    source, target = file_of(tmp_path, b"<cookie/>"), tmp_path / "target"
    write_revised(source, target, lambda xml: xml)
    assert target.read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    "changed",
    [{"version": 1}, {"version": 3}, {"compressed": 1}, {"size": 0}, {"size": 1 << 30}, {"notes_at": 1 << 20}],
)
def test_unknown_formats(tmp_path: Path, changed: dict[str, int]) -> None:
    source = file_of(tmp_path, b"", **changed)
    with source.open("rb") as file, pytest.raises(SnapshotUnusable, match="format") as caught:
        Description.read(file)
    assert caught.value.hint


@pytest.mark.parametrize("data", [b"", b"LibvirtQemudSave", b"LibvirtQemudPart" + bytes(100), bytes(200)])
def test_what_is_no_saved_state(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "memory"
    path.write_bytes(data)
    with path.open("rb") as file, pytest.raises(SnapshotUnusable, match="no saved state"):
        Description.read(file)


@pytest.mark.parametrize(
    "xml", ["", "<domain/>", "<domain><name/></domain>", "not xml", saved_xml().replace("iii-data", "x")]
)
def test_descriptions_that_do_not_fit(xml: str) -> None:
    with pytest.raises(SnapshotUnusable) as caught:
        revise(xml, OTHER)
    assert caught.value.code == "W238"


@pytest.mark.parametrize("pieces", [(), ((0, 10),), ((5000, 70000), (1 << 20, 1), (3 << 20, 4096))])
def test_sparse_copies(tmp_path: Path, pieces: tuple[tuple[int, int], ...]) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    luck = random.Random(1)
    with source.open("wb") as file:
        file.truncate(4 << 20)
        for at, size in pieces:
            file.seek(at)
            file.write(luck.randbytes(size))
    copy_sparse(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks <= source.stat().st_blocks + 64
    with pytest.raises(FileExistsError):
        copy_sparse(source, target)
