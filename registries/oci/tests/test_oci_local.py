"""Honest image files of this machine: what other tools write is read, and the containers tools' policy holds."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import trio
import zstandard
from iii_registry_oci.layers.limits import Limits
from iii_registry_oci.manifest import host_platform
from iii_registry_oci.resolver import OciResolver
from iii_registry_oci.store import ImageStore

from iii_core.errors import DigestMismatch, ImageError, ImageNotFound, ImageUnsafe, NoMatchingPlatform
from iii_core.images.port import Image, Progress
from iiitools.ocilayout import PlatformImage, tar_layer, write_index, write_layout

pytestmark = pytest.mark.integration
MACHINE = host_platform().architecture
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
}


@pytest.fixture
def lay(tmp_path: Path) -> Path:
    """A layout with the images ``one``, ``two``, and ``many``, which is for several platforms."""
    folder = tmp_path / "lay"
    for tag in ("one", "two"):
        write_layout(folder, tag=tag, layers=[layer(tag)], config={"User": "7"}, architecture=MACHINE)
    images = [PlatformImage(architecture=name, layers=[layer(name)]) for name in ("s390x", MACHINE)]
    write_index(folder, tag="many", images=images)
    return folder


def layer(name: str) -> bytes:
    return tar_layer({name: b"1" * 10_000})


def archive(lay: Path, *options: str) -> bytes:
    command = ["tar", "-C", str(lay), *options, "-cf", "-", "."]
    return subprocess.run(command, check=True, capture_output=True, timeout=30).stdout


def skopeo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["skopeo", *arguments], check=False, capture_output=True, text=True, timeout=30)


def files(image: Image) -> set[str]:
    command = ["unsquashfs", "-d", "", "-lc", str(image.root.path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    return {line.lstrip("/") for line in done.stdout.splitlines()} - {""}


async def fetch(open_store: Any, source: str) -> Image:
    async with open_store() as images:
        image: Image = await images.fetch(source, refresh=True, progress=lambda _: None)
        return image


@pytest.mark.parametrize("packer", PACKERS)
async def test_compressed_archives(tmp_path: Path, open_store: Any, lay: Path, packer: str) -> None:
    (tmp_path / "o").write_bytes(PACKERS[packer](archive(lay)))
    image = await fetch(open_store, f"oci-archive:{tmp_path}/o:one")
    assert (files(image), image.config.user) == ({"one"}, "7")
    assert skopeo("--insecure-policy", "copy", f"oci:{lay}:two", f"docker-archive:{tmp_path}/d.tar:w:1").returncode == 0
    (tmp_path / "d").write_bytes(PACKERS[packer]((tmp_path / "d.tar").read_bytes()))
    for selector in ("", ":w:1", ":@0"):
        assert files(await fetch(open_store, f"docker-archive:{tmp_path}/d{selector}")) == {"two"}


async def test_several_streams_in_one_file(tmp_path: Path, open_store: Any, lay: Path) -> None:
    """As parallel packers write them, and with padding between (xz format, section 2.2)."""
    plain = archive(lay)
    for number, (pack, padding) in enumerate(((bz2.compress, b""), (lzma.compress, bytes(8)), (gzip.compress, b""))):
        (tmp_path / "o").write_bytes(pack(plain[:3000]) + padding + pack(plain[3000:]) + padding)
        (tmp_path / "o").rename(tmp_path / f"o{number}")
        assert files(await fetch(open_store, f"oci-archive:{tmp_path}/o{number}:one")) == {"one"}


@pytest.mark.parametrize("form", ["gnu", "posix", "ustar", "v7"])
async def test_archives_of_other_tars(tmp_path: Path, open_store: Any, lay: Path, form: str) -> None:
    (tmp_path / "o.tar").write_bytes(archive(lay, f"--format={form}"))
    assert files(await fetch(open_store, f"oci-archive:{tmp_path}/o.tar:two")) == {"two"}


async def test_what_skopeo_writes(tmp_path: Path, open_store: Any, lay: Path) -> None:
    for target in (f"oci-archive:{tmp_path}/o.tar:some/name:1", f"oci-archive:{tmp_path}/unnamed.tar"):
        assert skopeo("--insecure-policy", "copy", f"oci:{lay}:one", target).returncode == 0
        assert files(await fetch(open_store, target)) == {"one"}


def blob(descriptor: dict[str, Any]) -> str:
    return f"blobs/{descriptor['digest'].replace(':', '/')}"


async def test_an_image_of_several(tmp_path: Path, open_store: Any, lay: Path) -> None:
    (tmp_path / "o.tar").write_bytes(archive(lay))
    for where in (f"oci:{lay}", f"oci-archive:{tmp_path}/o.tar"):
        assert files(await fetch(open_store, f"{where}:many")) == {MACHINE}
        with pytest.raises(ImageNotFound, match="3 images") as caught:
            await fetch(open_store, where)
        assert caught.value.details["tags"] == ["one", "two", "many"]
        with pytest.raises(ImageNotFound, match="no such image") as caught:
            await fetch(open_store, f"{where}:three")
        assert "one, two, many" in (caught.value.hint or "")
    write_index(lay, tag="many", images=[PlatformImage(architecture="s390x", layers=[layer("x")])])
    with pytest.raises(NoMatchingPlatform, match="s390x"):
        await fetch(open_store, f"oci:{lay}:many")


async def test_what_the_user_names_may_be_a_link(tmp_path: Path, open_store: Any, lay: Path) -> None:
    (tmp_path / "o.tar").write_bytes(archive(lay))
    (tmp_path / "link.tar").symlink_to("o.tar")
    (tmp_path / "link").symlink_to("lay")
    for source in (f"oci-archive:{tmp_path}/link.tar:one", f"oci:{tmp_path}/link:one"):
        assert files(await fetch(open_store, source)) == {"one"}


async def test_layers_of_the_store_are_not_copied_again(tmp_path: Path, open_store: Any, lay: Path, steps: Any) -> None:
    shared = tar_layer({"shared": b"1" * 10_000})
    for tag in ("one", "two"):
        write_layout(lay, tag=tag, layers=[shared, layer(tag)], config={}, architecture=MACHINE)
    async with open_store() as images:
        await images.fetch(f"oci:{lay}:one", refresh=False, progress=lambda _: None)
        await images.fetch(f"oci:{lay}:two", refresh=False, progress=steps)
    document = json.loads((lay / blob(json.loads((lay / "index.json").read_text())["manifests"][-1])).read_text())
    sizes = [document["config"]["size"], *(item["size"] for item in document["layers"])]
    assert {step.total for step in steps.steps if step.stage == "downloading"} == {sizes[0] + sizes[2]}


async def test_an_archive_may_not_unpack_to_more_than_an_image(tmp_path: Path, lay: Path) -> None:
    (tmp_path / "o.tar.gz").write_bytes(gzip.compress(archive(lay)))
    store = ImageStore(tmp_path / "images")
    store.prepare()
    images = OciResolver(store, {"HOME": str(tmp_path)}, Limits(total=20_000))
    with pytest.raises(ImageUnsafe, match="more than 20000 bytes"):
        await images.fetch(f"oci-archive:{tmp_path}/o.tar.gz:one", refresh=False, progress=lambda _: None)


async def test_an_archive_that_is_cut_while_it_is_copied(
    tmp_path: Path, open_store: Any, lay: Path, home: Path
) -> None:
    file = tmp_path / "o.tar"
    file.write_bytes(archive(lay))

    def cut(step: Progress) -> None:
        if step.stage == "downloading":
            with file.open("r+b") as opened:
                opened.truncate(600)

    async with open_store() as images:
        with pytest.raises(DigestMismatch):
            await images.fetch(f"oci-archive:{file}:one", refresh=False, progress=cut)
    assert list((home / "images/staging").iterdir()) == []


async def test_cancelling_a_copy(tmp_path: Path, open_store: Any, lay: Path, home: Path) -> None:
    """Between two pieces, also where nobody is told of progress, and while a compressed archive is unpacked."""
    noise = tar_layer({"noise": os.urandom(40_000_000)})
    write_layout(lay, tag="one", layers=[noise], config={}, architecture=MACHINE, compression="none")
    (tmp_path / "o.tar").write_bytes(archive(lay))
    (tmp_path / "o.tar.gz").write_bytes(gzip.compress(archive(lay), 1))
    for name, stage in (("o.tar", "downloading"), ("o.tar.gz", "resolving")):
        steps = Cut(stage)
        async with open_store() as images:
            with steps.scope:
                await images.fetch(f"oci-archive:{tmp_path}/{name}:one", refresh=False, progress=steps)
        assert steps.scope.cancelled_caught
        assert steps.last == stage
        assert [path for path in (home / "images").rglob("*") if path.is_file() and path.parent.name != "locks"] == []


class Cut:
    """Cancels ``scope`` once the work is at a stage."""

    def __init__(self, stage: str) -> None:
        self.scope = trio.CancelScope()
        self.last = ""
        self._stage = stage

    def __call__(self, step: Progress) -> None:
        self.last = step.stage
        if step.stage == self._stage:
            self.scope.cancel()


SIGNED = {"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/none.gpg"}
ACCEPT, REJECT = [{"type": "insecureAcceptAnything"}], [{"type": "reject"}]
POLICIES: dict[str, Callable[[str, Path], dict[str, Any]]] = {
    "accept all": lambda *_: {"default": ACCEPT},
    "reject all": lambda *_: {"default": REJECT},
    "signed": lambda *_: {"default": [SIGNED]},
    "accepted and signed": lambda *_: {"default": [*ACCEPT, SIGNED]},
    "this scheme alone": lambda scheme, _: {"default": REJECT, "transports": {scheme: {"": ACCEPT}}},
    "not this scheme": lambda scheme, _: {"default": ACCEPT, "transports": {scheme: {"": REJECT}}},
    "another scheme": lambda *_: {"default": ACCEPT, "transports": {"docker": {"": REJECT}}},
    "this path": lambda scheme, path: {"default": REJECT, "transports": {scheme: {str(path): ACCEPT}}},
    "not this path": lambda scheme, path: {
        "default": REJECT,
        "transports": {scheme: {str(path): REJECT, str(path.parent): ACCEPT}},
    },
    "this folder": lambda scheme, path: {"default": REJECT, "transports": {scheme: {str(path.parent): ACCEPT}}},
    "the root folder": lambda scheme, _: {"default": REJECT, "transports": {scheme: {"/": ACCEPT}}},
    "no requirement": lambda *_: {"default": []},
    "no default": lambda *_: {"transports": {}},
    "nonsense": lambda *_: {"default": "insecureAcceptAnything"},
}


@pytest.mark.parametrize("scheme", ["oci", "oci-archive", "docker-archive"])
async def test_the_policy_of_the_user_holds(tmp_path: Path, open_store: Any, lay: Path, scheme: str) -> None:
    """Whatever skopeo accepts and rejects, so do we; it looks at links' targets, so we name the images by a link."""
    real = {"oci": lay, "oci-archive": tmp_path / "o.tar", "docker-archive": tmp_path / "d.tar"}[scheme]
    (tmp_path / "o.tar").write_bytes(archive(lay))
    assert skopeo("--insecure-policy", "copy", f"oci:{lay}:one", f"docker-archive:{tmp_path}/d.tar:one").returncode == 0
    (tmp_path / "link").symlink_to(real)
    source = f"{scheme}:{tmp_path}/link:one"
    file = tmp_path / "user/.config/containers/policy.json"
    file.parent.mkdir(parents=True)
    outcomes = set[bool]()
    for number, (name, make) in enumerate(POLICIES.items()):
        file.write_text(json.dumps(make(scheme, real)))
        accepted = skopeo("--policy", str(file), "copy", source, f"dir:{tmp_path}/out{number}").returncode == 0
        outcomes.add(accepted)
        async with open_store(home=tmp_path / f"home{number}") as images:
            with nullcontext() if accepted else pytest.raises(ImageError) as caught:
                await images.fetch(source, refresh=False, progress=lambda _: None)
        assert caught is None or caught.type is ImageError, name
    assert outcomes == {True, False}
