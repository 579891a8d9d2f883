"""Image files of this machine that a stranger made: what they aim at stays as it was, and nothing waits.

Handed to skopeo 1.9.3 as they are, some of these archives write to the canaries, and every FIFO hangs.
"""

from __future__ import annotations

import gzip
import json
import lzma
import os
import socket
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
from iii_registry_oci.local.archive import ENTRIES_MAX
from iii_registry_oci.manifest import host_platform

from iii_core.errors import DigestMismatch, ImageError, ImageNotFound, ImageUnsafe
from iiitools.ocilayout import File, Link, tar_layer, write_layout
from iiitools.tarblocks import header, long_name, pax

pytestmark = pytest.mark.integration
SECONDS = 40  # for what must be refused at once; the machine may be busy
MACHINE = host_platform().architecture
ZEROS = "blobs/sha256/" + "0" * 64
Entries = dict[str, Any]


def layout(folder: Path) -> Entries:
    """An honest layout of the image ``t``: what its archive holds."""
    write_layout(folder, tag="t", layers=[tar_layer({"a": b"1"})], config={}, architecture=MACHINE)
    found: Entries = {"oci-layout": (folder / "oci-layout").read_bytes(), "blobs/": None, "blobs/sha256/": None}
    found |= {f"blobs/sha256/{path.name}": path.read_bytes() for path in (folder / "blobs/sha256").iterdir()}
    return {**found, "index.json": (folder / "index.json").read_bytes()}


def docker_save(folder: Path) -> Entries:
    """An honest archive of the image ``w:1`` as ``docker save`` wrote it."""
    write_layout(folder, tag="t", layers=[tar_layer({"a": b"1"})], config={}, architecture=MACHINE)
    command = ["skopeo", "--insecure-policy", "copy", "-q", f"oci:{folder}:t", f"docker-archive:{folder}.tar:w:1"]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    with tarfile.open(f"{folder}.tar") as archive:
        return {
            info.name: Link(info.linkname) if info.issym() else opened.read()
            for info in archive
            if info.issym() or (opened := archive.extractfile(info))
        }


def blob_of(entries: Entries) -> str:
    """The last blob of a layout."""
    return next(name for name in reversed(entries) if name.startswith("blobs/sha256/") and not name.endswith("/"))


def node(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.devmajor, info.devminor = kind, 1, 5
    return info


def appended(entries: Entries, more: Entries) -> bytes:
    """An archive with entries after those of another."""
    archive = tar_layer(entries).rstrip(b"\0")
    return archive + bytes(-len(archive) % 512) + tar_layer(more)


def first(entry: bytes, entries: Entries) -> bytes:
    """An archive that begins with raw blocks."""
    return entry + tar_layer(entries)


def moved(entries: Entries, name: str, instead: Any) -> bytes:
    """The archive with another entry for a name."""
    return tar_layer({**entries, name: instead})


# What they get is an honest layout's entries and the canaries' folder.
HOSTILE: Mapping[str, Callable[[Entries, Path], bytes]] = {
    "write through a link": lambda e, c: tar_layer({"a": Link(str(c)), "a/file": b"pwned", **e}),
    "write through a relative link": lambda e, c: tar_layer({"a": Link("../" * 20 + str(c)), "a/file": b"pwned", **e}),
    "blobs are a link": lambda e, c: first(header(b"blobs", b"2", link=str(c).encode()), e),
    "sha256 is a link": lambda e, c: first(header(b"blobs/sha256", b"2", link=str(c).encode()), e),
    "blobs become a link": lambda e, c: appended(e, {"blobs": Link(str(c)), ZEROS: b"pwned"}),
    "parents": lambda e, c: tar_layer({f"../../../../../../../../../..{c}/new/x": b"pwned", **e}),
    "parents of a folder": lambda e, c: tar_layer({f"blobs/../../../../../../../../..{c}/new/": None, **e}),
    "absolute": lambda e, c: first(header(str(c / "file").encode(), data=b"pwned"), e),
    "absolute by pax": lambda e, c: first(pax({b"path": str(c / "file").encode()}) + header(ZEROS.encode()), e),
    "absolute by GNU": lambda e, c: first(long_name(str(c / "file").encode()) + header(b"index.json"), e),
    "all renamed": lambda e, c: first(pax({b"path": str(c / "file").encode()}, b"g"), e),
    "index.json is a link": lambda e, c: moved(e, "index.json", Link(str(c / "file"))),
    "index.json is a link inside": lambda e, _: moved({**e, "other": b""}, "index.json", Link("oci-layout")),
    "oci-layout is a link": lambda e, c: moved(e, "oci-layout", Link(str(c / "file"))),
    "a blob is a link": lambda e, c: moved(e, blob_of(e), Link(str(c / "file"))),
    "a blob is a hard link": lambda e, c: moved(e, blob_of(e), Link(str(c / "file"), "hard")),
    "a hard link, then its bytes": lambda e, c: first(
        header(ZEROS.encode(), b"1", link=str(c / "file").encode()), {ZEROS: b"pwned", **e}
    ),
    "a hard link inside": lambda e, _: tar_layer({**e, ZEROS: Link("oci-layout", "hard")}),
    "a FIFO": lambda e, _: moved(e, "index.json", node("index.json", tarfile.FIFOTYPE)),
    "a device": lambda e, _: moved(e, blob_of(e), node(blob_of(e), tarfile.CHRTYPE)),
    "index.json twice": lambda e, _: appended(e, {"index.json": e["index.json"]}),
    "a blob twice": lambda e, _: appended(e, {"./" + blob_of(e): b"other"}),
    "sparse by GNU": lambda e, _: first(header(ZEROS.encode(), b"S", size=b"77777777777\0"), e),
    "sparse by pax": lambda e, _: first(pax({b"GNU.sparse.realsize": b"9" * 15}) + header(ZEROS.encode()), e),
    "two sizes": lambda e, _: first(pax({b"size": b"512"}) + header(ZEROS.encode(), data=b"x" * 1024), e),
    "another file": lambda e, _: tar_layer({**e, ".bashrc": b"pwned"}),
    "another folder": lambda e, _: tar_layer({**e, "evil-dir/": None}),
    "a file in blobs": lambda e, _: tar_layer({**e, "blobs/x": b""}),
    "upper case": lambda e, _: tar_layer({**e, "blobs/sha256/" + "A" * 64: b""}),
    "index.json is a folder": lambda e, _: moved(e, "index.json", tarfile.TarInfo("index.json/")),
    "cut": lambda e, _: tar_layer(e).rstrip(b"\0")[:-10],
    "no archive": lambda *_: b"#!/bin/sh\n" * 200,
    "index.json is huge": lambda e, _: moved(e, "index.json", b" " * 5_000_000 + e["index.json"]),
    "index.json is a manifest": lambda e, _: moved(e, "index.json", b'{"schemaVersion": 2, "layers": []}'),
    "too many entries": lambda e, _: header(b"blobs", b"5") * (ENTRIES_MAX + 1) + tar_layer(e),
    "packed badly": lambda e, _: gzip.compress(tar_layer(e))[:-100],
    "packed badly by xz": lambda e, _: lzma.compress(tar_layer(e))[:-100],
    "a gzip bomb": lambda *_: gzip.compress(header(ZEROS.encode(), size=b"77777777777\0") + bytes(32 << 20), 9) * 9,
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_oci_archive(tmp_path: Path, open_store: Any, ground: Any, name: str) -> None:
    file = tmp_path / "o.tar"
    file.write_bytes(HOSTILE[name](layout(tmp_path / "lay"), ground.canary))
    await refuse(open_store, ground, f"oci-archive:{file}:t", ImageUnsafe)


HOSTILE_DOCKER: Mapping[str, Callable[[Entries, Path], bytes]] = {
    "manifest.json is a link": lambda e, c: moved(e, "manifest.json", Link(str(c / "file"))),
    "a layer is a link": lambda e, c: tar_layer({k: Link(str(c / "file")) if ".tar" in k else v for k, v in e.items()}),
    "a relative link": lambda e, _: tar_layer({**e, "d/layer.tar": Link("../../canary/file")}),
    "write through a link": lambda e, c: tar_layer({"a": Link(str(c)), "a/file": b"pwned", **e}),
    "parents": lambda e, c: tar_layer({f"../../../../../../../../../..{c}/new/x": b"pwned", **e}),
    "absolute": lambda e, c: first(header(str(c / "file").encode(), data=b"pwned"), e),
    "a hard link": lambda e, c: tar_layer({**e, "h": Link(str(c / "file"), "hard")}),
    "a FIFO": lambda e, _: moved(e, "manifest.json", node("manifest.json", tarfile.FIFOTYPE)),
    "a device": lambda e, _: tar_layer({**e, "zero": node("zero", tarfile.CHRTYPE)}),
    "sparse": lambda e, _: first(pax({b"GNU.sparse.realsize": b"9" * 15}) + header(b"x"), e),
    "cut": lambda e, _: tar_layer(e).rstrip(b"\0")[:-10],
    "no archive": lambda *_: b"#!/bin/sh\n" * 200,
    "a gzip bomb": lambda *_: gzip.compress(bytes(32 << 20), 9) * 9,
}


@pytest.mark.parametrize("name", HOSTILE_DOCKER)
async def test_a_hostile_docker_archive(tmp_path: Path, open_store: Any, ground: Any, name: str) -> None:
    file = tmp_path / "d.tar"
    file.write_bytes(HOSTILE_DOCKER[name](docker_save(tmp_path / "lay"), ground.canary))
    await refuse(open_store, ground, f"docker-archive:{file}:w:1", ImageUnsafe)


async def test_names_in_a_docker_archive_stay_in_it(tmp_path: Path, open_store: Any, ground: Any) -> None:
    """Its manifest.json names files of this machine: skopeo looks for them among the archive's entries alone."""
    entries = docker_save(tmp_path / "lay")
    (manifest,) = json.loads(entries["manifest.json"])
    for field, value in (("Config", str(ground.canary / "file")), ("Layers", [str(ground.canary / "file")])):
        changed = json.dumps([{**manifest, field: value}]).encode()
        (tmp_path / "d.tar").write_bytes(moved(entries, "manifest.json", changed))
        await refuse(open_store, ground, f"docker-archive:{tmp_path}/d.tar:w:1", ImageNotFound, ImageError)


def fifo(path: Path, _: Path) -> None:
    os.mkfifo(path)


def link_out(path: Path, canary: Path) -> None:
    path.symlink_to(canary / "file")


def link_inside(path: Path, _: Path) -> None:
    path.symlink_to("/".join([".."] * (len(path.relative_to(path.parents[2]).parts) - 1) + ["oci-layout"]))


def unix_socket(path: Path, _: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def folder(path: Path, _: Path) -> None:
    path.mkdir()


def device(path: Path, _: Path) -> None:
    os.mknod(path, 0o20666, os.makedev(1, 5))  # /dev/zero: reading it never ends


NODES = [
    fifo,
    link_out,
    link_inside,
    unix_socket,
    folder,
    pytest.param(device, marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a device")),
]


@pytest.mark.parametrize("make", NODES)
@pytest.mark.parametrize("place", ["index.json", "manifest", "config", "layer"])
async def test_a_layout_holds_regular_files_alone(
    tmp_path: Path, open_store: Any, ground: Any, monkeypatch: pytest.MonkeyPatch, make: Any, place: str
) -> None:
    layout(tmp_path / "lay")
    path = find(tmp_path / "lay", place)
    path.unlink()
    monkeypatch.chdir(path.parent)  # a socket's path must be short
    make(Path(path.name) if make is unix_socket else path, ground.canary)
    await refuse(open_store, ground, f"oci:{tmp_path}/lay:t", ImageUnsafe)


@pytest.mark.parametrize("name", ["blobs", "blobs/sha256"])
async def test_folders_of_a_layout_are_no_links(tmp_path: Path, open_store: Any, ground: Any, name: str) -> None:
    layout(tmp_path / "lay")
    (tmp_path / "lay" / name).rename(tmp_path / "elsewhere")
    (tmp_path / "lay" / name).symlink_to(tmp_path / "elsewhere")
    await refuse(open_store, ground, f"oci:{tmp_path}/lay:t", ImageUnsafe)
    (tmp_path / "lay" / name).unlink()
    os.mkfifo(tmp_path / "lay" / name)
    await refuse(open_store, ground, f"oci:{tmp_path}/lay:t", ImageUnsafe)


@pytest.mark.parametrize("scheme", ["oci", "oci-archive", "docker-archive"])
async def test_what_is_named_is_of_the_right_kind(tmp_path: Path, open_store: Any, ground: Any, scheme: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    sources = [tmp_path / name for name in ("fifo", "link", "folder", "file", "none", "file/none")]
    for path in [*sources, Path("/dev/zero"), Path("/dev/null")]:
        await refuse(open_store, ground, f"{scheme}:{path}:t", ImageNotFound)


async def test_a_file_of_another_kind_is_told_apart(tmp_path: Path, open_store: Any) -> None:
    (tmp_path / "README.md").write_text("# not an image\n" * 100)
    for scheme in ("oci-archive", "docker-archive"):
        async with open_store() as images:
            with pytest.raises(ImageUnsafe, match="is no tar archive"):
                await images.fetch(f"{scheme}:{tmp_path}/README.md", refresh=False, progress=lambda _: None)


async def test_a_blob_of_another_size_or_content(tmp_path: Path, open_store: Any, ground: Any) -> None:
    entries = layout(tmp_path / "lay")
    for place in ("manifest", "config", "layer"):
        path = find(tmp_path / "lay", place)
        good = path.read_bytes()
        name = f"blobs/sha256/{path.name}"
        for bad in (good[:-1] + b"?", good[:-1], good + b"\0", b""):
            path.write_bytes(bad)
            (tmp_path / "o.tar").write_bytes(moved(entries, name, File(bad)))
            for source in (f"oci:{tmp_path}/lay:t", f"oci-archive:{tmp_path}/o.tar:t"):
                await refuse(open_store, ground, source, DigestMismatch)
        path.unlink()
        (tmp_path / "o.tar").write_bytes(tar_layer({key: value for key, value in entries.items() if key != name}))
        for source in (f"oci:{tmp_path}/lay:t", f"oci-archive:{tmp_path}/o.tar:t"):
            await refuse(open_store, ground, source, ImageNotFound)
        path.write_bytes(good)


async def test_a_docker_archive_that_is_swapped_while_it_is_read(tmp_path: Path, open_store: Any, ground: Any) -> None:
    """skopeo gets the file that was looked through, whatever has its name by then."""
    entries = docker_save(tmp_path / "lay")
    file = tmp_path / "d.tar"
    file.write_bytes(tar_layer(entries))
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "skopeo").write_text(f'#!/bin/sh\nrm -f {file}; mkfifo {file}\nexec /usr/bin/skopeo "$@"\n')
    (bin_folder / "skopeo").chmod(0o755)
    async with open_store({"PATH": f"{bin_folder}:{os.environ['PATH']}"}, home=ground.home) as images:
        with trio.fail_after(30):
            await images.fetch(f"docker-archive:{file}:w:1", refresh=False, progress=lambda _: None)
    assert file.is_fifo()
    ground.check()


def find(lay: Path, place: str) -> Path:
    """A file of a layout with one image of one layer."""
    if place == "index.json":
        return lay / place
    blobs = lay / "blobs/sha256"
    digest = json.loads((lay / "index.json").read_text())["manifests"][0]["digest"]
    if place != "manifest":
        document = json.loads((blobs / digest.partition(":")[2]).read_text())
        digest = (document["config"] if place == "config" else document["layers"][0])["digest"]
    return blobs / digest.partition(":")[2]


async def refuse(open_store: Any, ground: Any, source: str, *kinds: type[ImageError]) -> None:
    """Fetch what must be refused at once, with nothing stored and nothing changed."""
    async with open_store(home=ground.home) as images:
        with trio.fail_after(SECONDS), pytest.raises(ImageError) as caught:
            await images.fetch(source, refresh=False, progress=lambda _: None)
    assert type(caught.value) in kinds, str(caught.value)
    said = f"{caught.value} {caught.value.hint} {caught.value.details}"
    assert said.isprintable()
    assert "/proc/self" not in said
    ground.check()
    assert ground.kept() == []
