"""Archives that guests send: the good come out as they are, the hostile do no harm."""

from __future__ import annotations

import contextlib
import io
import random
import shutil
import stat
import tarfile
from pathlib import Path

import pytest

from iii_core.errors import SandboxError
from iii_core.sandbox.archive import ArchiveError, Unpacker, pack


def unpack(archive: bytes, target: Path, piece: int = 1 << 20) -> Unpacker:
    unpacker = Unpacker(target)
    try:
        for start in range(0, len(archive), piece):
            unpacker.feed(archive[start : start + piece])
        unpacker.finish()
    finally:
        unpacker.close()
    return unpacker


def member(
    name: str, kind: bytes = tarfile.REGTYPE, *, data: bytes = b"", target: str = "", mode: int = 0o644
) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.size = kind, target, mode, len(data)
    return info.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % 512)


END = bytes(1024)
FOLDER = member("top", tarfile.DIRTYPE, mode=0o755)


def test_what_is_packed_comes_out_whatever_the_pieces(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / ("d" * 120)).mkdir(parents=True)
    (tree / ("d" * 120) / "file").write_bytes(bytes(range(256)) * 10)
    (tree / "link").symlink_to("d" * 120 + "/file")
    (tree / "empty").touch()
    archive = b"".join(pack(tree))
    with tarfile.open(fileobj=io.BytesIO(archive)) as read:
        assert read.getnames()[0] == "tree"
    for number, piece in enumerate((1, 7, 512, 1 << 20)):
        target = tmp_path / f"out{number}"
        assert unpack(archive, target, piece).skipped == []
        assert (target / "link").read_bytes() == bytes(range(256)) * 10
        assert (target / "empty").stat().st_size == 0


def test_permissions_are_kept_and_no_more(tmp_path: Path) -> None:
    unpack(FOLDER + member("top/tool", data=b"x", mode=0o7755) + END, tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out" / "tool").stat().st_mode) == 0o755


@pytest.mark.parametrize("name", ["/etc/x", "../x", "top/../../x", "top/..", "", ".", "top/" + "a/" * 300 + "b"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArchiveError, match="entry with the name"):
        unpack(FOLDER + member(name) + END, tmp_path / "out")


def test_a_second_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "into").mkdir()
    (tmp_path / "into" / ".profile").write_text("mine")
    with pytest.raises(ArchiveError, match="more than what was asked for"):
        unpack(FOLDER + member(".profile", data=b"theirs") + END, tmp_path / "into")
    assert (tmp_path / "into" / ".profile").read_text() == "mine"


@pytest.mark.parametrize(
    "kind", [tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE, b"Z"]
)
def test_only_files_folders_and_links_are_unpacked(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(ArchiveError, match="entry of type"):
        unpack(FOLDER + member("top/x", kind, target="/etc/passwd") + END, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "target", "kept"),
    [
        ("top/link", "file", True),
        ("top/a/link", "../file", True),
        ("top/link", "./a/b", True),
        ("top/link", "/etc/passwd", False),
        ("top/link", "../file", False),
        ("top/a/link", "../../file", False),
        ("top/a/link", "up/../../file", False),  # "up" may be a link itself
        ("top/link", "..", False),
        ("top", "file", False),
        ("top", "../file", False),
    ],
)
def test_links_out_of_what_is_copied_are_left_out(tmp_path: Path, name: str, target: str, kept: bool) -> None:
    folders = b"" if name == "top" else FOLDER + member("top/a", tarfile.DIRTYPE, mode=0o755)
    unpacker = unpack(folders + member(name, tarfile.SYMTYPE, target=target) + END, tmp_path / "out")
    assert (tmp_path / "out" / name.removeprefix("top").lstrip("/")).is_symlink() == kept
    assert len(unpacker.skipped) == (0 if kept else 1)


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    sneaky = FOLDER + member("top/a", tarfile.DIRTYPE, mode=0o755) + member("top/l", tarfile.SYMTYPE, target="a")
    with pytest.raises(OSError, match=r"Not a directory|symbolic"):
        unpack(sneaky + member("top/l/x") + END, tmp_path / "out")
    target = tmp_path / "target"
    (target / "top").mkdir(parents=True)
    (target / "top" / "file").symlink_to(outside / "file")  # the user's own
    (target / "top" / "folder").symlink_to(outside)
    unpack(FOLDER + member("top/file", data=b"new") + END, target)
    assert (target / "top" / "file").read_text() == "new"
    with pytest.raises(OSError, match=r"Not a directory|symbolic|exists"):
        unpack(FOLDER + member("top/folder", tarfile.DIRTYPE) + member("top/folder/file", data=b"new") + END, target)
    assert (outside / "file").read_text() == "mine"


def test_an_archive_that_is_cut_off_is_said_to_be(tmp_path: Path) -> None:
    whole = FOLDER + member("top/file", data=b"x" * 1000) + END
    for size in (0, 100, 512, 700, 1500, len(whole) - 600):
        with pytest.raises(ArchiveError, match="cut off"):
            unpack(whole[:size], tmp_path / "out")


def test_headers_that_lie_are_refused(tmp_path: Path) -> None:
    good = FOLDER + member("top/file", data=b"x")
    flipped = bytearray(good)
    flipped[520] ^= 1
    big = tarfile.TarInfo("x")
    big.type, big.size = tarfile.XHDTYPE, 1 << 30
    for archive in (bytes(flipped), big.tobuf(), b"\xff" * 512, bytes(512) + good):
        with pytest.raises(ArchiveError):
            unpack(archive + END, tmp_path / "out")
    folder_with_size = tarfile.TarInfo("top")
    folder_with_size.type, folder_with_size.size = tarfile.DIRTYPE, 512
    header = bytearray(folder_with_size.tobuf())
    header[124:136] = b"00000001000\0"
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 256)
    with pytest.raises(ArchiveError, match="only files have a size"):
        unpack(bytes(header) + bytes(512) + END, tmp_path / "out")


def test_whatever_comes_nothing_else_is_raised_and_nothing_outside_is_touched(tmp_path: Path) -> None:
    """Mutations of a good archive, with the checksum of each header put right."""
    chosen = random.Random(1)
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / ("long" * 40)).write_bytes(b"content" * 300)
    (tree / "link").symlink_to("sub")
    good = b"".join(pack(tree))
    box = tmp_path / "box"
    for number in range(400):
        archive = bytearray(good)
        for _ in range(chosen.randrange(1, 6)):
            archive[chosen.randrange(len(archive))] = chosen.choice(
                [0, 0x2E, 0x2F, 0x30, 0x37, 0x78, chosen.randrange(256)]
            )
        for at in range(0, len(archive), 512):
            block = archive[at : at + 512]
            if block[257:262] == b"ustar":
                archive[at + 148 : at + 156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 256)
        box.mkdir()
        (box / "inner").mkdir()
        with contextlib.suppress(SandboxError, OSError):
            unpack(bytes(archive), box / "inner", chosen.choice([100, 1000, 1 << 20]))
        assert [path.name for path in box.iterdir()] == ["inner"], number
        assert not any(path.is_symlink() and not str(path.resolve()).startswith(str(box)) for path in box.rglob("*"))
        shutil.rmtree(box)
