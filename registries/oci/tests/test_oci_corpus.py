"""Good images, compared file by file with what ``umoci unpack`` makes of them."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import trio

from iiitools.ocilayout import File, Link, tar_layer, write_layout

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can unpack the owners that images have"),
]

Tree: TypeAlias = dict[str, tuple[Any, ...]]
NOISE = ("security.selinux",)


def gnu_tar(folder: Path, *options: str) -> bytes:
    command = ["tar", "-C", str(folder), *options, "-cf", "-", "."]
    return subprocess.run(command, check=True, capture_output=True).stdout


def folder_layer(tmp_path: Path) -> list[bytes]:
    """What GNU tar makes of a real folder, with links, attributes, odd modes and times."""
    source = tmp_path / "source"
    (source / "bin").mkdir(parents=True)
    (source / "empty").mkdir(mode=0o700)
    (source / "bin" / "tool").write_bytes(os.urandom(300_000))
    (source / "bin" / "tool").chmod(0o4755)
    (source / "bin" / "alias").hardlink_to(source / "bin" / "tool")
    (source / "bin" / "sh").symlink_to("/bin/busybox")
    (source / ("long" * 60)).write_bytes(b"x")
    (source / "sticky").mkdir()
    (source / "sticky").chmod(0o1777)
    os.setxattr(source / "bin" / "tool", "user.note", b"\0binary\xff")
    os.setxattr(source / "bin" / "tool", "security.capability", b"\1\0\0\2" + b"\0\4" + bytes(14))
    os.chown(source / "bin" / "sh", 1000, 1001, follow_symlinks=False)
    os.utime(source / "bin" / "tool", (1_600_000_000, 1_600_000_000))
    return [
        gnu_tar(source, "--format=posix", "--xattrs", "--xattrs-include=*"),
        gnu_tar(source, "--format=gnu", "--exclude=./bin"),
    ]


def system_layer(_: Path) -> list[bytes]:
    """A piece of this machine, as a distribution's base image has it."""
    command = ["tar", "-C", "/", "-cf", "-", "usr/lib/python3", "etc/ssl", "usr/share/doc/tar", "usr/bin/perl"]
    return [subprocess.run(command, check=True, capture_output=True).stdout]


def whiteouts(_: Path) -> list[bytes]:
    names = ("a/x", "a/y/z", "b/x", "c", "d/e/f", "keep/k")
    return [
        tar_layer(
            {
                "a/": None,
                "a/y/": None,
                "b/": None,
                "d/": None,
                "d/e/": None,
                "keep/": None,
                **dict.fromkeys(names, b"1"),
            }
        ),
        tar_layer({"a/": None, "a/.wh.x": b"", "b/": None, "b/.wh..wh..opq": b"", "b/new": b"2", ".wh.c": b""}),
        tar_layer({".wh.d": b"", "d/": None, "d/again": b"3", "a/.wh.y": b"", "a/y": b"now a file"}),
    ]


def hard_links(_: Path) -> list[bytes]:
    return [
        tar_layer({"a": File(b"1", mode=0o600, uid=5), "d/": None, "d/b": Link("a", "hard"), "s": Link("a")}),
        tar_layer({"c": Link("d/b", "hard"), "t": Link("s", "hard")}),
        tar_layer({"a": b"other"}),
        tar_layer({".wh.c": b""}),
    ]


def replacements(_: Path) -> list[bytes]:
    lower = {"f": b"1", "l": Link("f"), "d/": None, "d/x": b"1", "f2": b"1", "l2": Link("d"), "d2/": None, "d2/x": b""}
    upper = {
        "f": Link("l"),
        "l": b"2",
        "d": b"2",
        "f2/": None,
        "f2/y": b"2",
        "l2/": None,
        "l2/y": b"2",
        "d2": Link("f2"),
    }
    return [tar_layer(lower), tar_layer(upper)]


def merged_usr(_: Path) -> list[bytes]:
    """A base whose ``/lib`` is a link, and a layer that still says ``lib/``."""
    base = {"usr/": None, "usr/lib/": None, "usr/lib/a": b"1", "lib": Link("usr/lib"), "lib64": Link("/usr/lib")}
    return [tar_layer(base), tar_layer({"lib/b": b"2", "lib64/c": b"3", "lib/a": b"4"})]


def metadata(_: Path) -> list[bytes]:
    def folder(mode: int, uid: int, mtime: int) -> tarfile.TarInfo:
        info = tarfile.TarInfo("d/")
        info.type, info.mode, info.uid, info.gid, info.mtime = tarfile.DIRTYPE, mode, uid, uid + 1, mtime
        return info

    return [
        tar_layer({"d/": folder(0o755, 0, 1_000_000), "d/x": File(b"", mode=0, uid=70_000, gid=3_000_000, mtime=1)}),
        tar_layer({"d/": folder(0o2750, 33, 2_000_000), "d/y": File(b"y" * 200_000, mode=0o6711, mtime=2**31)}),
    ]


def names(_: Path) -> list[bytes]:
    odd = [
        "ü",
        "\u202e",
        "a\nb",
        "*",
        "-n",
        "\\",
        "a b",
        "'",
        '"',
        "x" * 255,
        "/".join(["deep" * 10] * 40),
        "\udc80\udcff",
    ]
    layers = []
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form, encoding="utf-8") as archive:
            for name in odd:
                info = tarfile.TarInfo(f"{form}/{name}")
                info.size = 3
                archive.addfile(info, io.BytesIO(b"abc"))
            link = tarfile.TarInfo(f"{form}/link")
            link.type, link.linkname = tarfile.SYMTYPE, "/target" * 30
            archive.addfile(link)
        layers.append(buffer.getvalue())
    return layers


def duplicates(_: Path) -> list[bytes]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for content in (b"first", b"the last one"):
            info = tarfile.TarInfo("./x//y")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return [buffer.getvalue(), tar_layer({}), tar_layer({"x/z": b""})]


def opaque_root(_: Path) -> list[bytes]:
    return [
        tar_layer({"a/": None, "a/b": b"1", "c": Link("a")}),
        tar_layer({".wh..wh..opq": b"", "a/": None, "d": b""}),
    ]


def deep(_: Path) -> list[bytes]:
    path = "/".join(f"level{number}" for number in range(100))
    return [tar_layer({f"{path}/file": b"1"}), tar_layer({f"{path}/.wh.file": b"", f"{path}/other": b"2"})]


def many_files(_: Path) -> list[bytes]:
    return [tar_layer({f"d{number % 40}/f{number}": b"%d" % number for number in range(2000)})]


def sizes(_: Path) -> list[bytes]:
    """Around the blocks of tar and squashfs, with zeros and without."""
    around = (0, 1, 511, 512, 513, 131_071, 131_072, 131_073, 1_048_575, 1_048_576, 3_000_000)
    files = {f"noise{size}": os.urandom(size) for size in around} | {f"zeros{size}": bytes(size) for size in around}
    return [tar_layer(files)]


def kinds_in_turn(_: Path) -> list[bytes]:
    """A name that is something else in each layer."""
    turns = ({"x": b"1"}, {"x/": None, "x/y": b"2"}, {"x": Link("z")}, {"x": b"3"}, {"x/": None, "x/w": b"4"})
    return [tar_layer({"z/": None, "z/inner": b"0"}), *(tar_layer(turn) for turn in turns)]


def many_layers(_: Path) -> list[bytes]:
    return [
        tar_layer({f"file{number}": b"%d" % number, **({f".wh.file{number - 3}": b""} if number % 2 else {})})
        for number in range(40)
    ]


def modes(_: Path) -> list[bytes]:
    files = {
        f"f{mode:o}": File(b"x", mode=mode, uid=mode, gid=1) for mode in (0, 0o4755, 0o2755, 0o1644, 0o7777, 0o111)
    }
    return [tar_layer(files), tar_layer({"f4755": File(b"y", mode=0o755), "f111": Link("f0", "hard")})]


def dots(_: Path) -> list[bytes]:
    """Names that look like whiteouts, like parents and like nothing, but are none of them."""
    names = ("...", "..a", "a..", ".wh", ".whale", "wh.a", ".w", "d/...", "d/.wh/x", "-", "~", "a.wh.b")
    return [tar_layer(dict.fromkeys(names, b"1")), tar_layer({"d/..b": b"2"})]


def ustar_prefixes(tmp_path: Path) -> list[bytes]:
    """Names that POSIX splits in two, and the oldest form that has no magic."""
    long = tmp_path / "prefix" / ("p" * 90) / ("q" * 50)
    long.mkdir(parents=True)
    (long / ("r" * 80)).write_bytes(b"1")
    (long / "link").symlink_to("s" * 90)
    return [gnu_tar(tmp_path / "prefix", "--format=ustar"), gnu_tar(long, "--format=v7")]


def long_targets(_: Path) -> list[bytes]:
    upper = {"dir" * 20 + "/" + "f" * 200: b"1", "hard": Link("dir" * 20 + "/" + "f" * 200, "hard")}
    return [tar_layer({"soft": Link("../" * 80 + "x")}), tar_layer(upper)]


def attributes(_: Path) -> list[bytes]:
    def file(value: str | None) -> tarfile.TarInfo:
        info = tarfile.TarInfo("file")
        info.pax_headers = {} if value is None else {"SCHILY.xattr.user.a": value, "SCHILY.xattr.user.b=c": "1" * 3000}
        return info

    return [tar_layer({"file": file("one"), "twin": Link("file", "hard")}), tar_layer({"file": file("two"), "n": b""})]


def times(_: Path) -> list[bytes]:
    def at(name: str, mtime: float) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.mtime = mtime
        return info

    moments = (0, 1, 2**31 - 1, 2**31, 1_700_000_000.75)
    return [tar_layer({f"t{moment}": at(f"t{moment}", moment) for moment in moments})]


def links_across(_: Path) -> list[bytes]:
    """Hard links whose names come, go and are replaced in other layers."""
    return [
        tar_layer({"a": b"first", "b": Link("a", "hard"), "c": Link("b", "hard")}),
        tar_layer({".wh.a": b"", "d": Link("c", "hard")}),
        tar_layer({"b": b"second", "e": Link("b", "hard"), "a": Link("d", "hard")}),
    ]


def nothing(_: Path) -> list[bytes]:
    return [tar_layer({}), tar_layer({"only/": None}), tar_layer({})]


CORPUS = (
    folder_layer,
    system_layer,
    whiteouts,
    hard_links,
    replacements,
    merged_usr,
    metadata,
    names,
    duplicates,
    opaque_root,
    deep,
    many_files,
    sizes,
    kinds_in_turn,
    many_layers,
    modes,
    dots,
    ustar_prefixes,
    long_targets,
    attributes,
    times,
    links_across,
    nothing,
)


@pytest.mark.parametrize("make", CORPUS, ids=lambda make: make.__name__)
async def test_the_root_image_is_what_umoci_unpacks(
    tmp_path: Path, make: Callable[[Path], Sequence[bytes]], open_store: Any, steps: Any
) -> None:
    layout = tmp_path / "layout"
    write_layout(layout, tag="t", layers=make(tmp_path), config={})
    async with open_store() as images:
        image = await images.fetch(f"oci:{layout}:t", refresh=False, progress=steps)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    quietly("unsquashfs", "-quiet", "-no-progress", "-dest", str(ours), str(image.root.path))
    quietly("umoci", "unpack", "--image", f"{layout}:t", str(theirs))
    assert scan(ours) == scan(theirs / "rootfs")


def quietly(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def scan(root: Path) -> Tree:
    """All that is below a folder, except for when folders changed (umoci gives unnamed ones the time it made them)."""
    inodes: dict[int, str] = {}
    found: Tree = {}
    for path in sorted(root.rglob("*"), key=os.fsencode):
        status = path.lstat()
        name = str(path.relative_to(root))
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = path.readlink()
        first = inodes.setdefault(status.st_ino, name) if not stat.S_ISDIR(status.st_mode) else name
        changed = None if stat.S_ISDIR(status.st_mode) else int(status.st_mtime)
        attributes = {
            key: os.getxattr(path, key, follow_symlinks=False)
            for key in os.listxattr(path, follow_symlinks=False)
            if key not in NOISE
        }
        found[name] = (oct(status.st_mode), status.st_uid, status.st_gid, changed, content, first, attributes)
    return found


async def test_one_image_gives_one_root_image(tmp_path: Path, open_store: Any, steps: Any) -> None:
    """Byte for byte, on whatever machine, whenever."""
    layout = tmp_path / "layout"
    write_layout(layout, tag="t", layers=[*folder_layer(tmp_path), *whiteouts(tmp_path)], config={})
    roots = []
    for home in (tmp_path / "home1", tmp_path / "home2"):
        await trio.sleep(1)  # squashfs counts whole seconds
        async with open_store(home=home) as images:
            image = await images.fetch(f"oci:{layout}:t", refresh=False, progress=steps)
        roots.append(image.root.path.read_bytes())
    assert roots[0] == roots[1]


async def test_the_root_directory_is_as_the_layers_say(tmp_path: Path, open_store: Any, steps: Any) -> None:
    root = tarfile.TarInfo("./")
    root.type, root.mode, root.uid, root.gid = tarfile.DIRTYPE, 0o711, 3, 4
    write_layout(tmp_path / "layout", tag="t", layers=[tar_layer({"./": root, "a": File(b"", uid=5)})], config={})
    async with open_store() as images:
        image = await images.fetch(f"oci:{tmp_path}/layout:t", refresh=False, progress=steps)
    listed = quietly("unsquashfs", "-lln", str(image.root.path))
    assert listed.split()[:2] == ["drwx--x--x", "3/4"]
