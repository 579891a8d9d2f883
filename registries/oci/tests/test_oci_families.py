"""The attack families that every release is tested against, each through the whole pull.

A case ends in a stable error code with nothing stored, or is harmless; and nothing outside the store changed: a tree of
canaries lies around it, at the places that the attacks aim at.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
from iii_registry_oci.manifest import host_platform

from iii_core.errors import IIIError
from iiitools.ocilayout import MANIFEST, Link, tar_layer, write_blob, write_json, write_manifest
from iiitools.tarblocks import END, header, long_name, pax

pytestmark = pytest.mark.integration
SECONDS = 40  # for a hung case; what counts is bounded in test_oci_bombs.py
OCI = "application/vnd.oci.image."
UNSAFE, MISMATCH, PLATFORM = "W225", "W224", "W223"
Document = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One image: its layers, and what its documents say that an honest one would not. ``code`` None is harmless."""

    family: str
    name: str
    code: str | None
    layers: Sequence[bytes] = (tar_layer({"a": b"1"}),)
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    manifest: Callable[[Document], Document] = lambda document: document
    settings: Callable[[Document], Document] = lambda document: document
    pack: Callable[[bytes], bytes] = lambda tar: gzip.compress(tar, 1, mtime=0)
    damage: Callable[[Path, Sequence[str]], object] = lambda _blobs, _digests: None


def node(name: str, kind: bytes, **headers: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.pax_headers, info.devmajor, info.devminor = kind, headers, 1, 3
    return info


def with_layers(**fields: Any) -> Callable[[Document], Document]:
    return lambda document: {**document, "layers": [{**layer, **fields} for layer in document["layers"]]}


def edit(number: int, change: Callable[[bytes], bytes]) -> Callable[[Path, Sequence[str]], object]:
    """Change a blob under its name: 0 is the first layer."""
    return lambda blobs, digests: (blobs / digests[number]).write_bytes(change((blobs / digests[number]).read_bytes()))


def swap(blobs: Path, digests: Sequence[str]) -> None:
    one, two = (blobs / digest for digest in digests[:2])
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


UP = "../" * 12
CASES = (
    Case("names", "absolute", UNSAFE, [tar_layer({"/canary/file": b"x"})]),
    Case("names", "parents", UNSAFE, [tar_layer({"a/../../../canary/file": b"x"})]),
    Case("names", "NUL", UNSAFE, [pax({b"path": b"a\0/../../canary"}) + header() + END]),
    Case("names", "too long", UNSAFE, [long_name(b"x/" * 3000) + header() + END]),
    Case("names", "case folding", None, [tar_layer({"A": b"1", "a": b"2", "\u212a": b"3", "k": b"4"})]),
    Case("names", "not UTF-8", None, [tar_layer({"\udcff\udc80": b"1"}), header(b"\xc3\x28") + END]),
    Case("names", "twice", None, [tar_layer({"a": b"1"}) [:1024] + tar_layer({"a": Link("/etc/passwd")})]),
    Case("links", "write through", None, [tar_layer({"l": Link(UP + "canary"), "l/file": b"x"})]),
    Case("links", "delete through", None, [tar_layer({"l": Link(UP + "canary")}), tar_layer({"l/.wh.file": b""})]),
    Case("links", "hard link through", UNSAFE, [tar_layer({"l": Link(UP + "canary"), "h": Link("l/file", "hard")})]),
    Case("links", "the root is one", UNSAFE, [header(b"./", b"2", link=b"/canary") + tar_layer({"file": b"x"})]),
    Case("links", "round", UNSAFE, [tar_layer({"a": Link("b"), "b": Link("a")}), tar_layer({"a/x": b""})]),
    Case("whiteouts", "empty", UNSAFE, [tar_layer({".wh.": b""})]),
    Case("whiteouts", "parent", UNSAFE, [tar_layer({"d/": None}), tar_layer({"d/.wh...": b""})]),
    Case("whiteouts", "itself", UNSAFE, [tar_layer({"d/.wh..": b""})]),
    Case("whiteouts", "opaque root", None, [tar_layer({"a": b"1"}), tar_layer({".wh..wh..opq": b""})]),
    Case("whiteouts", "of its own layer", None, [tar_layer({"a": b"1", ".wh.a": b""})]),
    Case("hard links", "outside", UNSAFE, [tar_layer({"h": Link(UP + "canary/file", "hard")})]),
    Case("hard links", "later entry", UNSAFE, [tar_layer({"h": Link("a", "hard"), "a": b"1"})]),
    Case("hard links", "folder", UNSAFE, [tar_layer({"d/": None, "h": Link("d", "hard")})]),
    Case("hard links", "chain", None, [tar_layer({"a": b"1", **{f"h{n}": Link("a", "hard") for n in range(500)}})]),
    Case("nodes", "devices and FIFOs", None, [tar_layer({n: node(n, n.encode()) for n in "346"})]),
    Case("nodes", "setuid and capabilities", None, [header(b"su", mode=b"0004755\0") + END]),
    Case(
        "nodes",
        "overlay attributes",
        None,
        [tar_layer({"a": node("a", b"0", **{"SCHILY.xattr.trusted.overlay.redirect": "/canary"})})],
    ),
    Case("nodes", "unknown kind", UNSAFE, [header(flag=b"Z") + END]),
    Case("bombs", "ratio", UNSAFE, pack=lambda _: gzip.compress(bytes(32 << 20), 9) * 10),
    Case("bombs", "depth", UNSAFE, [tar_layer({"d/" * 200 + "f": b""})]),
    Case("bombs", "pax header", UNSAFE, [pax({b"comment": b"x" * 2_000_000}) + header() + END]),
    Case("bombs", "sparse file", UNSAFE, [pax({b"GNU.sparse.realsize": b"9" * 15}) + header() + END]),
    Case("bombs", "10 000 layers", UNSAFE, manifest=lambda doc: {**doc, "layers": doc["layers"] * 10_000}),
    Case("bombs", "manifest", UNSAFE, manifest=lambda doc: {**doc, "annotations": {"a": "x" * 5_000_000}}),
    Case("headers", "two sizes", UNSAFE, [pax({b"size": b"0"}) + header(data=header(b"evil") + END) + END]),
    Case("headers", "nested archive", None, [tar_layer({"a.tar": tar_layer({UP + "canary/file": b"x"})})]),
    Case("headers", "trailing data", None, [tar_layer({"a": b"1"}) + header(b"/canary/file") + END]),
    Case("headers", "base 256", UNSAFE, [header(size=b"\x80" + b"\x7f" * 11) + END]),
    Case("headers", "cut", UNSAFE, [tar_layer({"a": b"1" * 2000})[:1500]]),
    Case("headers", "members", None, pack=lambda tar: b"".join(map(gzip.compress, (tar[:100], b"", tar[100:])))),
    Case("digests", "wrong bytes", MISMATCH, damage=edit(0, lambda data: data[:20] + b"?" + data[21:])),
    Case("digests", "truncated", MISMATCH, damage=edit(0, lambda data: data[:-3])),
    Case("digests", "wrong size", MISMATCH, manifest=with_layers(size=7)),
    Case("digests", "other algorithm", UNSAFE, manifest=with_layers(digest="sha512:" + "0" * 128)),
    Case("digests", "swapped", MISMATCH, [tar_layer({"a": b"1"}), tar_layer({"a": b"2"})], damage=swap),
    Case("digests", "diffID", MISMATCH, settings=lambda doc: {**doc, "rootfs": {"diff_ids": ["sha256:" + "0" * 64]}}),
    Case("manifests", "both kinds", UNSAFE, manifest=lambda doc: {**doc, "manifests": []}),
    Case("manifests", "lying type", UNSAFE, manifest=lambda doc: {**doc, "mediaType": f"{OCI}index.v1+json"}),
    Case("manifests", "foreign layer", UNSAFE, manifest=with_layers(urls=["http://169.254.169.254/latest"])),
    Case("manifests", "no layers", UNSAFE, manifest=lambda doc: {**doc, "layers": []}),
    Case("manifests", "platform", PLATFORM, settings=lambda doc: {**doc, "architecture": "pdp11"}),
    Case("manifests", "digest is a path", UNSAFE, manifest=with_layers(digest="sha256:" + UP + "canary/file")),
    Case("configurations", "user", UNSAFE, config={"User": "4294967295"}),
    Case("configurations", "directory", UNSAFE, config={"WorkingDir": "/proc/self/fd/7"}),
    Case("configurations", "environment", UNSAFE, config={"Env": ["A\nLD_PRELOAD=/evil.so"]}),
    Case("configurations", "labels", None, config={"Labels": {"a\n\x1b[2J": "\x1b]0;evil\x07"}}),
    Case("configurations", "account", None, [tar_layer({"etc/passwd": b"\xff:::\n" * 9})], {"User": "x"}),
)  # fmt: skip


def test_every_family_has_at_least_three_cases() -> None:
    """The eleventh, hostile registries, is test_oci_hostile_registry.py and test_oci_elsewhere.py."""
    families = [case.family for case in CASES]
    assert len(set(families)) == 10
    assert all(families.count(family) >= 3 for family in families)


def write(layout: Path, case: Case) -> None:
    """The image of a case, as the tag ``t``."""
    packed = [case.pack(tar) for tar in case.layers]
    layers = [write_blob(layout, data, f"{OCI}layer.v1.tar+gzip") for data in packed]
    plain = [gzip.decompress(data) if len(data) < 300_000 else b"" for data in packed]
    settings = {
        "os": "linux",
        "architecture": host_platform().architecture,
        "config": dict(case.config),
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in plain]},
    }
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": write_json(layout, case.settings(settings), f"{OCI}config.v1+json"),
        "layers": layers,
    }
    write_manifest(layout, tag="t", manifest=case.manifest(document))
    case.damage(layout / "blobs/sha256", [layer["digest"].removeprefix("sha256:") for layer in layers])


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.family}: {case.name}")
async def test_family(tmp_path: Path, open_store: Any, ground: Any, case: Case) -> None:
    write(tmp_path / "layout", case)
    code = None
    async with open_store(home=ground.home) as images:
        try:
            with trio.fail_after(SECONDS):
                await images.fetch(f"oci:{tmp_path}/layout:t", refresh=False, progress=lambda _: None)
        except IIIError as error:
            code = error.code
            said = json.dumps([error.message, error.hint, error.details], ensure_ascii=False)
            assert said.isprintable()
            assert len(said) < 5000
    assert code == case.code
    ground.check()
    assert bool(ground.kept()) == (code is None)
