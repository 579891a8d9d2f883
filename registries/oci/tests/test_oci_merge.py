"""What the merge makes of good layers (OCI image-spec, "Applying Changesets")."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable
from typing import Any

import pytest
import zstandard

from iiitools.ocilayout import File, Link, tar_layer

Merge = Callable[..., Any]


def test_metadata_is_kept(merge_layers: Merge) -> None:
    layer = tar_layer({"bin/": None, "bin/su": File(b"#!", mode=0o4755, uid=7, gid=4_000_000, mtime=1_700_000_000)})
    info = merge_layers(layer).entries["bin/su"]
    assert (info.mode, info.uid, info.gid, info.mtime, info.size) == (0o4755, 7, 4_000_000, 1_700_000_000, 2)


def test_the_root_directory_is_described_apart(merge_layers: Merge) -> None:
    root = tarfile.TarInfo("./")
    root.type, root.mode, root.uid, root.gid, root.mtime = tarfile.DIRTYPE, 0o711, 1, 2, 3
    image = merge_layers(tar_layer({"./": root, "./a": b""}))
    assert image.root == (0o711, 1, 2, 3)
    assert image.names == {"a"}


def test_missing_directories_are_made(merge_layers: Merge) -> None:
    image = merge_layers(tar_layer({"a/b/c": b"x"}))
    assert image.names == {"a", "a/b", "a/b/c"}
    assert (image.entries["a/b"].mode, image.entries["a/b"].uid) == (0o755, 0)


def test_a_directory_takes_the_upper_metadata_and_keeps_its_content(merge_layers: Merge) -> None:
    upper = tarfile.TarInfo("d/")
    upper.type, upper.mode, upper.uid = tarfile.DIRTYPE, 0o700, 5
    image = merge_layers(tar_layer({"d/": None, "d/x": b"1"}), tar_layer({"d/": upper}))
    assert (image.entries["d"].mode, image.entries["d"].uid) == (0o700, 5)
    assert image.data == {"d/x": b"1"}


def test_an_upper_file_replaces_a_lower_one(merge_layers: Merge) -> None:
    image = merge_layers(tar_layer({"a": b"old", "b": b"old"}), tar_layer({"a": b"new"}))
    assert image.data == {"a": b"new", "b": b"old"}


def test_of_two_entries_with_one_name_the_later_counts(merge_layers: Merge) -> None:
    twice = tarfile.TarInfo("a")
    twice.mode = 0o600
    image = merge_layers(tar_layer({"a": b"first", "./a": twice}))
    assert image.data == {"a": b""}
    assert image.entries["a"].mode == 0o600


@pytest.mark.parametrize(
    ("lower", "upper", "expected"),
    [
        ({"x": b"1"}, {"x": Link("y")}, {"x": "symlink"}),
        ({"x": Link("/etc")}, {"x": b"1"}, {"x": "file"}),
        ({"x": Link("y"), "y/": None, "y/z": b""}, {"x/": None}, {"x": "directory", "y": "directory", "y/z": "file"}),
        ({"x/": None, "x/y": b"1"}, {"x": b"2"}, {"x": "file"}),
        ({"x/": None, "x/y": b"1"}, {"x": Link("z")}, {"x": "symlink"}),
        ({"x": b"1"}, {"x/": None, "x/y": b"2"}, {"x": "directory", "x/y": "file"}),
    ],
    ids=["file→link", "link→file", "link→directory", "directory→file", "directory→link", "file→directory"],
)
def test_one_kind_replaces_another(merge_layers: Merge, lower: Any, upper: Any, expected: dict[str, str]) -> None:
    image = merge_layers(tar_layer(lower), tar_layer(upper))
    assert {name: kind_of(info) for name, info in image.entries.items()} == expected


def test_whiteouts_remove_files_and_trees(merge_layers: Merge) -> None:
    lower = tar_layer({"a": b"", "d/": None, "d/e/": None, "d/e/f": b"", "keep": b""})
    image = merge_layers(lower, tar_layer({".wh.a": b"", ".wh.d": b"", ".wh.never-there": b"", "no/.wh.x": b""}))
    assert image.names == {"keep"}


@pytest.mark.parametrize("order", [1, -1])
def test_whiteouts_spare_their_own_layer(merge_layers: Merge, order: int) -> None:
    upper = {".wh.a": b"", "a": b"new", "d/": None, "d/.wh..wh..opq": b"", "d/new": b"new"}
    entries = dict(list(upper.items())[::order])
    image = merge_layers(tar_layer({"a": b"old", "d/": None, "d/old": b"old", "d/s/": None}), tar_layer(entries))
    assert image.data == {"a": b"new", "d/new": b"new"}
    assert image.names == {"a", "d", "d/new"}


def test_an_opaque_root_hides_all_below(merge_layers: Merge) -> None:
    image = merge_layers(tar_layer({"a": b"", "b/": None}), tar_layer({".wh..wh..opq": b"", "c": b""}))
    assert image.names == {"c"}


def test_what_was_removed_may_come_back(merge_layers: Merge) -> None:
    image = merge_layers(tar_layer({"d/": None, "d/x": b"1"}), tar_layer({".wh.d": b""}), tar_layer({"d/y": b"2"}))
    assert image.data == {"d/y": b"2"}


def test_aufs_housekeeping_is_left_out(merge_layers: Merge) -> None:
    image = merge_layers(tar_layer({".wh..wh.aufs": b"", ".wh..wh.plnk/": None, ".wh..wh.plnk/1.2": b"", "a": b""}))
    assert image.names == {"a"}


def test_hard_links_stay_links(merge_layers: Merge) -> None:
    image = merge_layers(tar_layer({"a": b"data", "d/": None, "d/b": Link("a", "hard"), "c": Link("./d//b", "hard")}))
    links = {name: info.linkname for name, info in image.entries.items() if info.islnk()}
    assert links == {"d/b": "a", "c": "a"}
    assert image.data == {"a": b"data"}


def test_hard_links_reach_into_lower_layers(merge_layers: Merge) -> None:
    image = merge_layers(tar_layer({"d/": None, "d/a": b"data"}), tar_layer({"b": Link("d/a", "hard")}))
    assert {name: info.linkname for name, info in image.entries.items() if info.islnk()} in ({"b": "d/a"}, {"d/a": "b"})


def test_a_hard_link_outlives_the_name_it_was_made_from(merge_layers: Merge) -> None:
    lower = tar_layer({"a": b"old", "b": Link("a", "hard"), "c": Link("a", "hard")})
    image = merge_layers(lower, tar_layer({"a": b"new"}))
    assert image.data["a"] == b"new"
    (link,) = (info for info in image.entries.values() if info.islnk())
    assert {link.name, link.linkname} == {"b", "c"}
    assert image.data[link.linkname] == b"old"


def test_hard_links_to_symbolic_links(merge_layers: Merge) -> None:
    image = merge_layers(tar_layer({"a": Link("target"), "b": Link("a", "hard")}))
    assert image.entries["a"].issym()
    assert (image.entries["b"].islnk(), image.entries["b"].linkname) == (True, "a")


def test_names_may_go_through_links_inside_the_image(merge_layers: Merge) -> None:
    lower = tar_layer({"usr/": None, "usr/lib/": None, "usr/lib/x": b"1", "lib": Link("usr/lib"), "l2": Link("/lib")})
    image = merge_layers(lower, tar_layer({"lib/y": b"2", "l2/.wh.x": b"", "z": Link("lib/y", "hard")}))
    assert image.names == {"usr", "usr/lib", "usr/lib/y", "lib", "l2", "z"}
    assert {image.data.get("usr/lib/y"), image.data.get("z")} == {b"2", None}


def test_links_never_lead_above_the_root_of_the_image(merge_layers: Merge) -> None:
    image = merge_layers(tar_layer({"up": Link("../../../.."), "up/x": b"1", "deep": Link("/../etc/"), "deep/y": b"2"}))
    assert image.data == {"x": b"1", "etc/y": b"2"}


def test_symbolic_link_targets_are_data(merge_layers: Merge) -> None:
    image = merge_layers(tar_layer({"a": Link("../../../etc/passwd"), "b": Link("/" + "x" * 300)}))
    assert image.entries["a"].linkname == "../../../etc/passwd"
    assert image.entries["b"].linkname == "/" + "x" * 300


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_strange_names(merge_layers: Merge, form: int) -> None:
    names = ["x" * 255, "/".join(["d" * 50] * 70), "ünï", "\udcff\udc80", "new\nline", "back\\slash", " ", "-rf", "a=b"]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, encoding="utf-8") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "t" * 200
        archive.addfile(link)
    image = merge_layers(buffer.getvalue())
    files = {name for name, info in image.entries.items() if info.isreg()}
    assert files == set(names)
    assert image.entries["link"].linkname == "t" * 200


def test_large_ids_and_times_in_every_form(merge_layers: Merge) -> None:
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
            info = tarfile.TarInfo("a")
            info.uid, info.gid, info.mtime = 3_000_000_000, 2_097_152, -5
            archive.addfile(info)
            later = tarfile.TarInfo("b")
            later.mtime = 2**40
            archive.addfile(later)
        image = merge_layers(buffer.getvalue())
        assert (image.entries["a"].uid, image.entries["a"].gid) == (3_000_000_000, 2_097_152)
        assert (image.entries["a"].mtime, image.entries["b"].mtime) == (0, 2**32 - 1)


def test_attributes_are_kept_but_those_of_the_overlay_and_the_builder(merge_layers: Merge) -> None:
    kept = {"user.note": "hello", "security.capability": "\x01\x00\x00\x02"}
    dropped = {
        "trusted.overlay.redirect": "/etc",
        "trusted.overlay.opaque": "y",
        "user.overlay.whiteout": "y",
        "security.selinux": "x",
        "security.ima": "x",
    }
    info = tarfile.TarInfo("a")
    info.pax_headers = {f"SCHILY.xattr.{name}": value for name, value in {**kept, **dropped}.items()}
    headers = merge_layers(tar_layer({"a": info})).entries["a"].pax_headers
    assert {name.removeprefix("SCHILY.xattr."): value for name, value in headers.items()} == kept


def test_device_nodes_and_fifos_are_left_out_and_take_the_place_of_what_was_there(merge_layers: Merge) -> None:
    nodes = {}
    for name, kind in (("null", tarfile.CHRTYPE), ("disk", tarfile.BLKTYPE), ("pipe", tarfile.FIFOTYPE)):
        nodes[name] = tarfile.TarInfo(name)
        nodes[name].type = kind
    image = merge_layers(tar_layer({"null": b"x", "a": b"y"}), tar_layer({**nodes, "n": Link("null", "hard")}))
    assert image.names == {"a"}
    assert image.merged.left_out == 4


@pytest.mark.parametrize(
    "pack",
    [
        lambda tar: tar,
        lambda tar: b"".join(gzip.compress(tar[at : at + 700]) for at in range(0, len(tar), 700)),
        zstandard.compress,
        lambda tar: zstandard.compress(tar[:512]) + zstandard.compress(tar[512:]),
    ],
    ids=["plain", "gzip members", "zstd", "zstd frames"],
)
def test_compression_is_told_by_the_first_bytes(merge_layers: Merge, lay_layer: Any, pack: Any) -> None:
    tar = tar_layer({"a": b"data" * 1000, "b": b""})
    layer = lay_layer(pack(tar), f"sha256:{hashlib.sha256(tar).hexdigest()}")
    assert merge_layers(layer).data == {"a": b"data" * 1000, "b": b""}


def test_an_archive_may_lack_its_end_and_may_have_a_tail(merge_layers: Merge) -> None:
    tar = tar_layer({"a": b"1"})
    assert merge_layers(tar[:1024]).data == {"a": b"1"}
    assert merge_layers(tar + b"what follows the end is no entry" * 100).data == {"a": b"1"}


def test_old_headers_without_a_magic(merge_layers: Merge) -> None:
    layer = bytearray(tar_layer({"d/": None, "d/a": b"1"}))
    for at in (0, 512):
        layer[at + 156] = 0  # the type that files and directories had in V7
        layer[at + 257 : at + 265] = bytes(8)
        layer[at + 148 : at + 156] = b" " * 8
        layer[at + 148 : at + 156] = b"%06o\0 " % sum(layer[at : at + 512])
    image = merge_layers(bytes(layer))
    assert image.entries["d"].isdir()
    assert image.data == {"d/a": b"1"}


def test_empty_layers(merge_layers: Merge) -> None:
    assert merge_layers(tar_layer({}), b"", tar_layer({"a": b""})).names == {"a"}
    assert merge_layers(tar_layer({})).names == set()


def test_the_manifest_inside_the_image_is_found_through_links(merge_layers: Merge) -> None:
    def manifest(*layers: dict[str, Any]) -> bytes | None:
        found: bytes | None = merge_layers(*map(tar_layer, layers)).merged.files.get(b"iii/worker.yaml")
        return found

    assert manifest({"iii/worker.yaml": b"name: x"}) == b"name: x"
    linked = {"app/w.yaml": b"name: y", "iii": Link("app"), "app/worker.yaml": Link("/iii/./w.yaml")}
    assert manifest(linked) == b"name: y"
    for nothing in ({"iii/worker.yaml/": None}, {"iii": b""}, {"iii/worker.yaml": Link("worker.yaml")}, {"a": b""}):
        assert manifest(nothing) is None
    assert manifest({"iii/worker.yaml": b"#" * 70_000}) is None
    assert manifest({"iii/worker.yaml": b"old"}, {".wh.iii": b""}) is None


def kind_of(info: tarfile.TarInfo) -> str:
    return "symlink" if info.issym() else "directory" if info.isdir() else "file"
