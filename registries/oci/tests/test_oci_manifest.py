"""Manifests, indexes and configurations: what is taken, and what confuses nobody. And ``/iii/worker.yaml``."""

from __future__ import annotations

import json
from typing import Any

import pytest
from iii_registry_oci.hints import parse_hints
from iii_registry_oci.layers.limits import Limits
from iii_registry_oci.manifest import (
    Descriptor,
    Index,
    Manifest,
    Platform,
    check_digest,
    choose,
    parse_config,
    parse_document,
)

from iii_core.errors import DigestMismatch, ImageUnsafe, NoMatchingPlatform
from iii_core.images.port import ImageHints

LIMITS = Limits()
DIGEST = "sha256:" + "a" * 64
OCI = "application/vnd.oci.image."
AMD = Platform(os="linux", architecture="amd64")


def blob(**fields: Any) -> dict[str, Any]:
    return {"mediaType": f"{OCI}layer.v1.tar+gzip", "digest": DIGEST, "size": 1, **fields}


def document(**fields: Any) -> dict[str, Any]:
    config = blob(mediaType=f"{OCI}config.v1+json")
    return {"schemaVersion": 2, "mediaType": f"{OCI}manifest.v1+json", "config": config, "layers": [blob()], **fields}


def index(*manifests: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": f"{OCI}index.v1+json", "manifests": list(manifests), **fields}


def parse(value: Any) -> Manifest | Index:
    return parse_document(json.dumps(value).encode(), LIMITS)


def test_manifests_of_both_families_are_taken() -> None:
    assert isinstance(parse(document()), Manifest)
    docker = "application/vnd.docker."
    layer = blob(mediaType=f"{docker}image.rootfs.diff.tar.gzip")
    config = blob(mediaType=f"{docker}container.image.v1+json")
    kind = f"{docker}distribution.manifest.v2+json"
    assert isinstance(parse(document(mediaType=kind, config=config, layers=[layer])), Manifest)
    unnamed = document()
    del unnamed["mediaType"]
    assert isinstance(parse(unnamed), Manifest)


@pytest.mark.parametrize(
    "value",
    [
        {**document(), "manifests": []},
        {**index(blob()), "config": blob()},
        document(mediaType=f"{OCI}index.v1+json"),
        index(mediaType=f"{OCI}manifest.v1+json"),
        document(mediaType="text/html"),
        document(schemaVersion=1),
        document(schemaVersion="2"),
        document(layers=[]),
        document(layers=None),
        document(layers={}),
        document(layers=["x"]),
        document(layers=[blob()] * 501),
        document(layers=[blob(digest="sha512:" + "a" * 128)]),
        document(layers=[blob(digest="sha256:../../../etc/passwd")]),
        document(layers=[blob(digest=7)]),
        document(layers=[blob(size=-1)]),
        document(layers=[blob(size="1")]),
        document(layers=[blob(size=True)]),
        document(layers=[blob(size=1e3)]),
        document(layers=[blob(size=2**62)]),
        document(layers=[blob(urls=["http://169.254.169.254/"])]),
        document(layers=[blob(mediaType="application/vnd.oci.image.layer.nondistributable.v1.tar")]),
        document(layers=[blob(mediaType="application/vnd.unknown")]),
        document(config=blob(mediaType="application/vnd.cncf.helm.config.v1+json")),
        document(config=blob(mediaType=f"{OCI}config.v1+json", size=5_000_000)),
        index(*[blob()] * 501),
        index(blob(platform="linux")),
        [],
        "x",
        None,
    ],
)
def test_confusing_manifests_are_refused(value: Any) -> None:
    with pytest.raises(ImageUnsafe):
        parse(value)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"schemaVersion": 2, "schemaVersion": 2}',
        b'{"schemaVersion": ' + b"9" * 10_000 + b"}",
        json.dumps(document()).encode().ljust(LIMITS.manifest + 1),
    ],
    ids=["empty", "cut", "not UTF-8", "deep", "key twice", "number", "too large"],
)
def test_documents_that_are_no_json_of_ours(raw: bytes) -> None:
    with pytest.raises(ImageUnsafe):
        parse_document(raw, LIMITS)


def test_names_in_a_manifest_are_shown_safely() -> None:
    with pytest.raises(ImageUnsafe) as caught:
        parse(document(layers=[blob(mediaType="\x1b[2J\nevil")]))
    assert str(caught.value).isprintable()


def test_the_platform_is_chosen_and_attestations_are_passed_over() -> None:
    def of(system: str, architecture: str, digit: str) -> dict[str, Any]:
        digest = "sha256:" + digit * 64
        return blob(digest=digest, platform={"os": system, "architecture": architecture})

    found = parse(index(of("unknown", "unknown", "1"), of("windows", "amd64", "2"), of("linux", "amd64", "3")))
    assert isinstance(found, Index)
    assert choose(found, AMD).digest == "sha256:" + "3" * 64
    with pytest.raises(NoMatchingPlatform) as caught:
        choose(found, Platform(os="linux", architecture="arm64"))
    assert caught.value.details["available"] == ["windows/amd64", "linux/amd64"]


def test_digests() -> None:
    with pytest.raises(DigestMismatch, match="expected sha256:aaa"):
        check_digest(b"x", DIGEST, "A thing")


def config_of(config: Any, **fields: Any) -> Any:
    value = {"os": "linux", "architecture": "amd64", "config": config, "rootfs": {"diff_ids": [DIGEST]}, **fields}
    manifest = Manifest(
        config=Descriptor(digest=DIGEST, size=1, media_type=""),
        layers=(Descriptor(digest=DIGEST, size=1, media_type=""),),
    )
    return parse_config(json.dumps(value).encode(), manifest, LIMITS)[1]


def test_configurations() -> None:
    config = {
        "Env": ["A=1", "B=x=y\nz", "EMPTY="],
        "Entrypoint": ["a"],
        "Cmd": ["b", "c"],
        "WorkingDir": "/w",
        "User": "me:1000",
        "StopSignal": "SIGRTMIN+3",
    }
    found = config_of(config)
    assert found.env == (("A", "1"), ("B", "x=y\nz"), ("EMPTY", ""))
    assert (found.entrypoint, found.cmd, found.working_dir) == (("a",), ("b", "c"), "/w")
    assert (found.user, found.stop_signal) == ("me:1000", "SIGRTMIN+3")
    empty = config_of(None)
    assert (empty.env, empty.entrypoint, empty.working_dir, empty.user) == ((), (), "/", "")
    assert config_of({"Env": None, "Cmd": None, "WorkingDir": ""}) == empty


@pytest.mark.parametrize(
    "config",
    [
        {"Env": "A=1"},
        {"Env": ["no equals"]},
        {"Env": ["=x"]},
        {"Env": ["A\n=x"]},
        {"Env": ["A=\0"]},
        {"Env": ["A=" + "x" * 200_000]},
        {"Env": ["A=1"] * 5000},
        {"Entrypoint": [1]},
        {"Cmd": ["a\0b"]},
        {"WorkingDir": "relative"},
        {"WorkingDir": "/a/../../b"},
        {"WorkingDir": "/proc/self/fd/7"},
        {"WorkingDir": "//proc/self/fd/7"},
        {"WorkingDir": "/sys"},
        {"WorkingDir": "/x" * 4000},
        {"User": "4294967295"},
        {"User": "4294967296"},
        {"User": "-1"},
        {"User": "a:b:c"},
        {"User": "root\n"},
        {"User": "0:99999999999999999999"},
        {"StopSignal": "SIGKILL; rm"},
        {"StopSignal": 9},
        "text",
    ],
)
def test_hostile_configurations_are_refused(config: Any) -> None:
    with pytest.raises(ImageUnsafe) as caught:
        config_of(config)
    assert str(caught.value).isprintable()


def test_each_layer_has_a_diff_id() -> None:
    for diff_ids in ([], [DIGEST, DIGEST], ["sha512:" + "a" * 128], [7], None):
        with pytest.raises(ImageUnsafe):
            config_of({}, rootfs={"diff_ids": diff_ids})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "name: w\nversion: 1.0\ndescription: >\n  two\n  lines\n",
            ImageHints(name="w", version="1.0", description="two lines"),
        ),
        ("resources: {cpus: '1.5', memory: 512Mi}", ImageHints(cpus=2, memory_mib=512)),
        ("resources: {cpus: 0.1, memory: 2048}", ImageHints(cpus=1, memory_mib=2048)),
        ("resources: {cpus: 4, memory: 1048576Ki}", ImageHints(cpus=4, memory_mib=1024)),
        ("resources: {memory: '2147483648'}", ImageHints(memory_mib=2048)),
        ("resources: {cpus: many, memory: -1}\nname: w", ImageHints(name="w")),
        ("resources: 7\nname: [x]", ImageHints()),
        ('name: "a\\e[2J"\nversion: "1"', ImageHints(version="1")),
    ],
)
def test_hints(text: str, expected: ImageHints) -> None:
    assert parse_hints(text.encode()) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a",
        "a: [",
        "!!python/object/apply:os.system [id]",
        "a: &x 1\nb: *x",
        "[" * 5000,
        "a: " + "{b: " * 50,
        "\0",
    ],
)
def test_what_is_no_manifest_is_taken_as_none(text: str) -> None:
    assert parse_hints(text.encode()) is None
