"""Layers that try something: each ends in a stable error before a byte of the image is written, or is harmless."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from iii_registry_oci.layers.limits import Limits

from iii_core.errors import DigestMismatch, ImageError, ImageUnsafe
from iiitools.ocilayout import Link, tar_layer
from iiitools.tarblocks import END, pax
from iiitools.tarblocks import header as raw

Merge = Callable[..., Any]


def refuse(merge_layers: Merge, *layers: Any, limits: Limits | None = None) -> str:
    """Merge what must be refused; gives what the user is told."""
    with pytest.raises(ImageUnsafe) as caught:
        merge_layers(*layers, limits=limits)
    said = f"{caught.value.message} | {caught.value.hint}"
    assert said.isprintable()
    assert len(said) < 1000
    return said


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "//etc/passwd", "../x", "a/../../x", "a/..", "..", "./../x", "a/b/../c"],
)
def test_names_that_leave_the_image(merge_layers: Merge, name: str) -> None:
    said = refuse(merge_layers, tar_layer({name: b"x"}))
    assert "absolute" in said or "climbs" in said


@pytest.mark.parametrize("name", ["/etc/passwd", "../../x"])
def test_names_that_leave_the_image_by_an_extended_header(merge_layers: Merge, name: str) -> None:
    refuse(merge_layers, pax({b"path": name.encode()}) + raw() + END)
    refuse(merge_layers, raw(b"././@LongLink", b"L", name.encode() + b"\0") + raw() + END)


def test_names_that_hold_nul(merge_layers: Merge) -> None:
    assert "NUL" in refuse(merge_layers, pax({b"path": b"good\0/../../evil"}) + raw() + END)
    assert "NUL" in refuse(merge_layers, raw(b"L", b"L", b"good\0evil\0") + raw() + END)
    assert "nothing" in refuse(merge_layers, raw(flag=b"2", link=b"") + END)


def test_names_that_are_too_long_or_too_deep(merge_layers: Merge) -> None:
    assert "255" in refuse(merge_layers, tar_layer({"x" * 256: b""}))
    assert "4095" in refuse(merge_layers, tar_layer({"/".join(["x" * 200] * 30): b""}))
    assert "128" in refuse(merge_layers, tar_layer({"/".join("x" * 129): b""}))
    assert "4095" in refuse(merge_layers, tar_layer({"a": Link("x" * 5000)}))


def test_names_that_differ_in_case_alone_are_different(merge_layers: Merge) -> None:
    assert merge_layers(tar_layer({"A": b"1", "a": b"2"})).data == {"A": b"1", "a": b"2"}


def test_names_cannot_forge_what_the_terminal_shows(merge_layers: Merge) -> None:
    said = refuse(merge_layers, tar_layer({"../\x1b[2J\n\u202egood": b"x"}))
    assert "\\x1b[2J\\n\\u202egood" in said


# --- links ----------------------------------------------------------------------------------------------------------


def test_a_root_that_is_no_directory(merge_layers: Merge) -> None:
    for root in (raw(b"./", b"2", link=b"/etc"), raw(b".", b"0", b"x"), raw(b"./", b"1", link=b"a")):
        assert "root" in refuse(merge_layers, tar_layer({"a": b"1"}), root + END)


def test_symlinks_that_go_round(merge_layers: Merge) -> None:
    assert "too many" in refuse(merge_layers, tar_layer({"a": Link("b"), "b": Link("a"), "a/x": b""}))
    assert "too many" in refuse(merge_layers, tar_layer({"a": Link("a/b"), "a/x": b""}))
    chain: dict[str, Any] = {f"l{at}": Link(f"l{at + 1}") for at in range(50)}
    assert "too many" in refuse(merge_layers, tar_layer({**chain, "l0/x": b""}))


def test_symlinks_that_make_deep_trees(merge_layers: Merge) -> None:
    deep = "/".join("d" * 100)
    assert "128" in refuse(merge_layers, tar_layer({f"{deep}/l": Link(deep), f"{deep}/l/x": b""}))


def test_a_name_below_a_file(merge_layers: Merge) -> None:
    assert "no directory" in refuse(merge_layers, tar_layer({"a": b"1", "a/b": b"2"}))
    assert "no directory" in refuse(merge_layers, tar_layer({"a": b"1", "l": Link("a")}), tar_layer({"l/b": b"2"}))


@pytest.mark.parametrize("target", ["../x", "../../etc/passwd", "a/../../x"])
def test_hard_links_that_leave_the_image(merge_layers: Merge, target: str) -> None:
    assert "climbs" in refuse(merge_layers, tar_layer({"a": b"", "l": Link(target, "hard")}))


@pytest.mark.parametrize("target", ["/etc/passwd", "etc/passwd", "later", "l", "d", "up/etc/passwd", ""])
def test_hard_links_to_what_is_not_a_file_of_the_image(merge_layers: Merge, target: str) -> None:
    entries = {"d/": None, "up": Link("/../../.."), "l": Link(target, "hard"), "later": b""}
    assert "hard link to" in refuse(merge_layers, tar_layer(entries))


def test_hard_links_to_what_the_layer_removes(merge_layers: Merge) -> None:
    refuse(merge_layers, tar_layer({"a": b"1"}), tar_layer({".wh.a": b"", "b": Link("a", "hard")}))


def test_a_hard_link_to_itself_is_harmless(merge_layers: Merge) -> None:
    assert merge_layers(tar_layer({"a": b"1"}), tar_layer({"a": Link("a", "hard")})).data == {"a": b"1"}


# --- whiteouts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [".wh.", ".wh..", ".wh...", "d/.wh.", "d/.wh...", ".wh.x/y", "d/.wh.x/y", "d/.wh..wh.a/b"]
)
def test_whiteouts_of_nothing(merge_layers: Merge, name: str) -> None:
    assert "whiteout" in refuse(merge_layers, tar_layer({"d/": None, "x/": None}), tar_layer({name: b""}))


def test_whiteouts_through_links_stay_inside(merge_layers: Merge) -> None:
    lower = tar_layer({"up": Link("../../.."), "loop": Link("loop"), "file": b"", "keep": b""})
    image = merge_layers(lower, tar_layer({"up/.wh.keep": b"", "file/.wh.x": b"", "up/home/.wh..wh..opq": b""}))
    assert image.names == {"up", "loop", "file"}
    assert "too many" in refuse(merge_layers, lower, tar_layer({"loop/.wh.x": b""}))


# --- headers --------------------------------------------------------------------------------------------------------


def test_damaged_headers(merge_layers: Merge) -> None:
    good = tar_layer({"a": b"1", "b": b"2"})
    broken = good[:1024] + b"X" + good[1025:]
    assert "checksum" in refuse(merge_layers, broken)
    assert "middle" in refuse(merge_layers, good[:700])
    assert "middle" in refuse(merge_layers, good[:1024] + good[1024:1300])
    assert "zeros" in refuse(merge_layers, good[:1024] + bytes(512) + good[1024:])
    assert "number" in refuse(merge_layers, raw(size=b"00000000009\0") + END)
    assert "number" in refuse(merge_layers, raw(uid=b"-1") + END)
    assert "number" in refuse(merge_layers, raw(mode=b"0o7") + END)
    assert "negative" in refuse(merge_layers, raw(size=b"\xff" * 12) + END)
    assert "uid" in refuse(merge_layers, raw(uid=b"\x80\0\0\0\xff\xff\xff\xff") + END)


def test_sizes_in_base_256(merge_layers: Merge) -> None:
    assert merge_layers(raw(data=b"1", size=b"\x80" + bytes(10) + b"\1") + END).data == {"a": b"1"}
    assert "bytes (at most" in refuse(merge_layers, raw(size=b"\x80" + b"\x7f" * 11) + END)


@pytest.mark.parametrize("flag", [b"S", b"D", b"M", b"V", b"N", b"X", b"A", b"\xff"])
def test_unsupported_types(merge_layers: Merge, flag: bytes) -> None:
    assert "unsupported type" in refuse(merge_layers, raw(flag=flag) + END)


def test_two_sizes(merge_layers: Merge) -> None:
    """The inner archive is seen by readers that believe the other size."""
    inner = raw(b"evil", data=b"x") + END
    assert "two sizes" in refuse(merge_layers, pax({b"size": b"0"}) + raw(data=inner) + END)
    assert "two sizes" in refuse(merge_layers, pax({b"size": b"%d" % len(inner)}) + raw(data=b"1") + inner + END)
    assert "sets sizes" in refuse(merge_layers, pax({b"size": b"0"}, b"g") + raw(data=inner) + END)


def test_nested_archives_are_data(merge_layers: Merge) -> None:
    inner = tar_layer({"../../evil": b"x"})
    assert merge_layers(tar_layer({"a.tar": inner})).data == {"a.tar": inner}


@pytest.mark.parametrize("flag", [b"1", b"2", b"5"])
def test_what_has_no_data_has_none_whatever_it_says(merge_layers: Merge, flag: bytes) -> None:
    """As Go reads it; a reader that skipped the data would miss the next entry."""
    layer = raw(b"t") + raw(b"x", flag, size=b"00000001000\0", link=b"t") + raw(b"b", data=b"2") + END
    assert merge_layers(layer).data["b"] == b"2"


@pytest.mark.parametrize(
    "records",
    [
        b"x",
        b"5 a=b",
        b"99 path=x\n",
        b"0 path=x\n",
        b"3 path=x\n",
        b"-9 path=x\n",
        b"11 path=abc",
        b" path=x\n",
        b"9 pathx\n\n",
        b"5 =x\n",
        b"999999999999999999999999 path=x\n",
        b"10 uid=ab\n",
        b"12 mtime=x\n\n",
        b"11 size=-1\n",
        b"20 GNU.sparse.ma=or\n\n",
    ],
)
def test_malformed_extended_headers(merge_layers: Merge, records: bytes) -> None:
    refuse(merge_layers, pax(records) + raw() + END)


def test_extended_headers_that_stand_alone_or_pile_up(merge_layers: Merge) -> None:
    assert "ends after" in refuse(merge_layers, pax({b"path": b"x"}) + END)
    assert "two extended" in refuse(merge_layers, pax({b"path": b"x"}) * 2 + raw() + END)
    assert "two long" in refuse(merge_layers, raw(b"L", b"L", b"x\0") * 2 + raw() + END)
    assert "global" in refuse(merge_layers, pax({b"k%d" % at: b"v" for at in range(65)}, b"g") + raw() + END)
    assert "records" in refuse(merge_layers, pax(b"5 a=\n" * 257) + raw() + END)
    assert merge_layers(pax({b"comment": b"0123"}, b"g") + raw(b"a", data=b"1") + END).data == {"a": b"1"}


def test_attributes_that_are_too_large(merge_layers: Merge) -> None:
    assert "64 KiB" in refuse(merge_layers, pax({b"SCHILY.xattr.user.a": b"x" * 70_000}) + raw() + END)
    assert "64 KiB" in refuse(merge_layers, pax({b"SCHILY.xattr.user." + b"x" * 300: b""}) + raw() + END)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(), st.integers(1, 12))
def test_damage_anywhere_is_refused_or_harmless(merge_layers: Merge, seed: int, flips: int) -> None:
    rng = random.Random(seed)
    long = {"p" * 150: b"long", "u\xfc": Link("a")}
    layer = bytearray(tar_layer({"d/": None, "d/a": b"data" * 200, "l": Link("d/a", "hard"), **long, ".wh.x": b""}))
    for _ in range(flips):
        header = rng.randrange(0, len(layer), 512)
        layer[min(header + rng.choice([rng.randrange(512), rng.randrange(100, 160)]), len(layer) - 1)] = rng.randrange(
            256
        )
        if rng.random() < 0.8 and header + 512 <= len(layer):  # else nearly all would end at the checksum
            layer[header + 148 : header + 156] = b" " * 8
            layer[header + 148 : header + 156] = b"%06o\0 " % sum(layer[header : header + 512])
    try:
        image = merge_layers(bytes(layer))
    except ImageUnsafe as error:
        said = str(error)
    else:
        said = ""
        assert not any(name.startswith(("/", "..")) or "/../" in name for name in image.names)
    assert said.isprintable()


# --- digests --------------------------------------------------------------------------------------------------------


def test_layers_that_are_not_what_their_digests_say(merge_layers: Merge, lay_layer: Any) -> None:
    tar = tar_layer({"a": b"1" * 10_000})
    packed = gzip.compress(tar)
    for damage in (lambda data: data[:-1], lambda data: data + b"\0", lambda data: data[:40] + b"?" + data[41:]):
        layer = lay_layer(packed)
        layer.path.write_bytes(damage(packed))
        with pytest.raises(DigestMismatch, match=r"sha256|bytes"):
            merge_layers(layer)
    with pytest.raises(DigestMismatch, match="archive"):
        merge_layers(lay_layer(packed, "sha256:" + "0" * 64))
    with pytest.raises(DigestMismatch, match="archive"):
        merge_layers(lay_layer(gzip.compress(tar + b"appended"), lay_layer(packed).diff_id))


def test_swapped_layers(merge_layers: Merge, lay_layer: Any) -> None:
    one, two = lay_layer(gzip.compress(tar_layer({"a": b"1"}))), lay_layer(gzip.compress(tar_layer({"b": b"2"})))
    content = one.path.read_bytes()
    one.path.write_bytes(two.path.read_bytes())
    two.path.write_bytes(content)
    with pytest.raises(DigestMismatch):
        merge_layers(one, two)


def test_gzip_that_is_cut_or_has_a_tail(merge_layers: Merge, lay_layer: Any) -> None:
    packed = gzip.compress(tar_layer({"a": b"1"}))
    for layer in (packed[:-4], packed + b"tail", packed + packed[:15]):
        refuse(merge_layers, lay_layer(layer, "sha256:" + "0" * 64))


# --- bombs ----------------------------------------------------------------------------------------------------------


def test_limits_hold_at_their_edge(merge_layers: Merge) -> None:
    layer = tar_layer({"a": b"x" * 5000, "b/": None, "c": Link("a")})
    for fits in (Limits(entries=3), Limits(file=5000), Limits(total=len(layer)), Limits(depth=1), Limits(path=2)):
        merge_layers(layer, limits=fits)
    for tight in (Limits(entries=2), Limits(file=4999), Limits(total=len(layer) - 1), Limits(path=0)):
        refuse(merge_layers, layer, limits=tight)


def test_limits_are_for_all_layers_together(merge_layers: Merge) -> None:
    layer = tar_layer({"a": b"x" * 5000})
    refuse(merge_layers, layer, layer, limits=Limits(total=len(layer) * 2 - 1))
    refuse(merge_layers, layer, layer, limits=Limits(entries=1))


def test_too_many_names_in_one_directory_are_refused_by_name(merge_layers: Merge) -> None:
    layer = tar_layer({f"d/{number}": b"" for number in range(4)})
    merge_layers(layer, limits=Limits(folder=4))
    assert "The directory 'd' holds 4 names (at most 3)" in refuse(merge_layers, layer, limits=Limits(folder=3))
    flat = tar_layer({str(number): b"" for number in range(4)})
    assert "The directory '/' holds" in refuse(merge_layers, flat, limits=Limits(folder=3))


def test_directories_that_nobody_wrote_count(merge_layers: Merge) -> None:
    refuse(merge_layers, tar_layer({"a/b/c/d/e/f": b""}), limits=Limits(entries=5))


def test_gzip_bombs(merge_layers: Merge) -> None:
    bomb = tar_layer({"a": bytes(3_000_000)})
    assert "times its size" in refuse(merge_layers, bomb, limits=Limits(ratio=100, ratio_floor=1_000_000))
    assert merge_layers(bomb).data["a"] == bytes(3_000_000)


def test_giant_extended_headers(merge_layers: Merge) -> None:
    assert "extended header of" in refuse(merge_layers, pax({b"comment": b"x" * 2_000_000}) + raw() + END)
    assert "extended header of" in refuse(merge_layers, raw(b"L", b"L", size=b"\x80" + b"\x7f" * 11) + raw() + END)


def test_sparse_files(merge_layers: Merge) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a")
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(2**40)}
        archive.addfile(info)
    assert "sparse" in refuse(merge_layers, buffer.getvalue())


def test_errors_are_image_errors() -> None:
    assert issubclass(ImageUnsafe, ImageError)
    assert ImageUnsafe.default_code == "W225"
