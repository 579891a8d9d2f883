"""Images as Docker writes them: its manifests and configurations, and the archives of ``docker save``."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from iii_registry_oci.manifest import host_platform

from iii_core.errors import DigestMismatch
from iii_core.images.port import Image
from iiitools.lyingregistry import Goods, describe, digest_of
from iiitools.ocilayout import Entry, Link, tar_layer

pytestmark = pytest.mark.integration
KIND = "application/vnd.docker."
LAYER = tar_layer({"one": b"1" * 10_000})


def configuration(*layers: bytes) -> bytes:
    """What Docker's older builder writes, in its order, with fields that OCI does not know and skopeo leaves out."""
    document = {
        "architecture": host_platform().architecture,
        "config": {"Hostname": "", "Env": ["A=1"], "Cmd": ["/one"], "ArgsEscaped": True, "OnBuild": None},
        "container": "ab" * 32,
        "container_config": {"Hostname": "abab", "Cmd": ["/bin/sh", "-c", "#(nop)"]},
        "created": "2021-01-01T00:00:00.123456789Z",
        "docker_version": "20.10.7",
        "history": [{"created": "2021-01-01T00:00:00Z", "created_by": "<&>"}],
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
    }
    return json.dumps(document).encode()


def save(config: bytes, layers: dict[str, Entry], order: list[str], **more: bytes) -> bytes:
    """An archive of the image ``w:1``."""
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = json.dumps([{"Config": name, "RepoTags": ["w:1"], "Layers": order}]).encode()
    return tar_layer({name: config, **layers, "manifest.json": manifest, **more})


def files(image: Image) -> set[str]:
    command = ["unsquashfs", "-d", "", "-lc", str(image.root.path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    return {line.lstrip("/") for line in done.stdout.splitlines()} - {""}


async def fetch(open_store: Any, source: str) -> Image:
    async with open_store() as images:
        image: Image = await images.fetch(source, refresh=False, progress=lambda _: None)
        return image


async def test_what_docker_save_wrote(tmp_path: Path, open_store: Any) -> None:
    layers: dict[str, Entry] = {"ab/": None, "ab/VERSION": b"1.0", "ab/json": b"{}", "ab/layer.tar": LAYER}
    archive = save(configuration(LAYER), layers, ["ab/layer.tar"], repositories=b'{"w": {"1": "ab"}}')
    (tmp_path / "d.tar").write_bytes(archive)
    image = await fetch(open_store, f"docker-archive:{tmp_path}/d.tar")
    assert (files(image), image.config.env, image.config.cmd) == ({"one"}, (("A", "1"),), ("/one",))


async def test_a_layer_that_comes_twice_is_a_link(tmp_path: Path, open_store: Any) -> None:
    layers: dict[str, Entry] = {"a/": None, "a/layer.tar": LAYER, "b/": None, "b/layer.tar": Link("../a/layer.tar")}
    archive = save(configuration(LAYER, LAYER), layers, ["a/layer.tar", "b/layer.tar"])
    (tmp_path / "d.tar").write_bytes(archive)
    assert files(await fetch(open_store, f"docker-archive:{tmp_path}/d.tar:w:1")) == {"one"}


async def test_both_formats_in_one_archive(tmp_path: Path, open_store: Any) -> None:
    """As Docker 25 and newer write it."""
    config = configuration(LAYER)
    blobs = {digest_of(data): data for data in (config, LAYER)}
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": describe(config, "application/vnd.oci.image.config.v1+json"),
            "layers": [describe(LAYER, "application/vnd.oci.image.layer.v1.tar")],
        }
    ).encode()
    descriptor = describe(manifest, "application/vnd.oci.image.manifest.v1+json")
    annotations = {"io.containerd.image.name": "docker.io/library/w:1", "org.opencontainers.image.ref.name": "1"}
    index = {"schemaVersion": 2, "manifests": [{**descriptor, "annotations": annotations}]}
    names = {digest: f"blobs/{digest.replace(':', '/')}" for digest in (*blobs, digest_of(manifest))}
    written = [{"Config": names[digest_of(config)], "RepoTags": ["w:1"], "Layers": [names[digest_of(LAYER)]]}]
    entries: dict[str, Entry] = {"blobs/": None, "blobs/sha256/": None, names[digest_of(manifest)]: manifest}
    entries |= {names[digest]: data for digest, data in blobs.items()}
    entries |= {"index.json": json.dumps(index).encode(), "manifest.json": json.dumps(written).encode()}
    entries |= {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "repositories": b"{}"}
    (tmp_path / "both.tar").write_bytes(tar_layer(entries))
    for source in (f"oci-archive:{tmp_path}/both.tar:1", f"docker-archive:{tmp_path}/both.tar:w:1"):
        assert files(await fetch(open_store, source)) == {"one"}


@pytest.fixture
def docker_goods(goods: Goods) -> Goods:
    """The honest image of `goods`, as Docker pushes it."""
    config = json.loads(configuration())
    config["rootfs"] = json.loads(goods.config)["rootfs"]
    goods.config = json.dumps(config).encode()
    goods.manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": f"{KIND}distribution.manifest.v2+json",
            "config": describe(goods.config, f"{KIND}container.image.v1+json"),
            "layers": [describe(goods.layer, f"{KIND}image.rootfs.diff.tar.gzip")],
        }
    ).encode()
    goods.serve_manifest(goods.manifest, "1", digest_of(goods.manifest), kind=f"{KIND}distribution.manifest.v2+json")
    goods.blob(goods.config, lambda: (200, {}, goods.config))
    return goods


async def test_what_docker_pushed(docker_goods: Goods, open_store: Any) -> None:
    image = await fetch(open_store, docker_goods.source)
    assert image.digest == digest_of(docker_goods.manifest)
    assert (files(image), image.config.env) == ({"a"}, (("A", "1"),))


@pytest.mark.parametrize("change", [lambda raw: raw[:-2] + b" }", lambda raw: raw + b"\n", lambda raw: raw[:-1]])
async def test_a_configuration_that_is_another_one(
    docker_goods: Goods, refused: Any, change: Callable[[bytes], bytes]
) -> None:
    """Also where it is right the first time, and another one when it is asked for again."""
    changed = change(docker_goods.config)
    docker_goods.blob(docker_goods.config, lambda: (200, {}, changed))
    await refused(docker_goods.source, DigestMismatch)
    answers = iter([docker_goods.config])
    docker_goods.blob(docker_goods.config, lambda: (200, {}, next(answers, changed)))
    await refused(docker_goods.source, DigestMismatch)
