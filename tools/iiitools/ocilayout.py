"""Build OCI image layouts for tests and demos, without Docker (OCI image-spec 1.0, ``image-layout.md``).

>>> layer = tar_layer({"iii/worker.yaml": b"name: hello\\n", "bin/run": File(b"#!/bin/sh\\n", mode=0o755)})
>>> write_layout(path, tag="1.0", layers=[layer], config={"Entrypoint": ["/bin/run"]})
'sha256:…'
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

LayerTar: TypeAlias = bytes | Path
"""An uncompressed tar archive: its bytes, or the file that holds it."""

Compression: TypeAlias = Literal["gzip", "none", "zstd"]

_SUFFIX: Mapping[Compression, str] = {"gzip": "+gzip", "none": "", "zstd": "+zstd"}
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformImage:
    """One variant of a multi-platform image."""

    architecture: str
    layers: Sequence[LayerTar]
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    os: str = "linux"


@dataclass(frozen=True, slots=True)
class File:
    """A regular file of `tar_layer` that needs more than its bytes."""

    data: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 0


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link (``kind="symbolic"``) or a hard link to a path of the archive."""

    target: str
    kind: Literal["symbolic", "hard"] = "symbolic"


Entry: TypeAlias = bytes | File | Link | tarfile.TarInfo | None


def tar_layer(entries: Mapping[str, Entry]) -> bytes:
    """A tar archive of ``entries``, in their order.

    A path that ends in ``/`` (value None) is a directory; bytes are a file of mode 0644; `File`, `Link` and
    `tarfile.TarInfo` (used as it is, under its own name) say more. Nothing is checked: hostile archives are a use.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, entry in entries.items():
            info = entry if isinstance(entry, tarfile.TarInfo) else tarfile.TarInfo(path)
            data = b""
            match entry:
                case None:
                    info.type, info.mode = tarfile.DIRTYPE, 0o755
                case bytes():
                    data = entry
                case File():
                    data = entry.data
                    info.mode, info.uid, info.gid, info.mtime = entry.mode, entry.uid, entry.gid, entry.mtime
                case Link():
                    info.type = tarfile.SYMTYPE if entry.kind == "symbolic" else tarfile.LNKTYPE
                    info.linkname, info.mode = entry.target, 0o777
                case _:
                    pass
            if not isinstance(entry, tarfile.TarInfo):
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data) if data else None)
    return buffer.getvalue()


def write_layout(
    path: Path,
    *,
    tag: str,
    layers: Sequence[LayerTar],
    config: Mapping[str, Any],
    architecture: str = "amd64",
    os: str = "linux",
    compression: Compression = "gzip",
) -> str:
    """Write (or add to) the image layout at ``path`` an image called ``tag``.

    Args:
        path: the layout's folder; made if it is not there.
        tag: its name in the layout; an image that had it loses it.
        layers: from the base to the top.
        config: the ``config`` object of the image (``Env``, ``Entrypoint``, ``Cmd``, ``WorkingDir``, ``User`` …).
        architecture: as Go calls it.
        os: as Go calls it.
        compression: of the layers.

    Returns:
        the manifest's digest, ``sha256:…``.
    """
    image = PlatformImage(architecture=architecture, os=os, layers=layers, config=config)
    descriptor = _write_image(path, image, compression)
    _tag(path, tag, descriptor)
    return str(descriptor["digest"])


def write_index(path: Path, *, tag: str, images: Sequence[PlatformImage], compression: Compression = "gzip") -> str:
    """Like `write_layout` for a multi-platform image; returns the index's digest."""
    manifests = [
        {
            **_write_image(path, image, compression),
            "platform": {"os": image.os, "architecture": image.architecture},
        }
        for image in images
    ]
    descriptor = write_json(path, {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}, INDEX)
    _tag(path, tag, descriptor)
    return str(descriptor["digest"])


def write_manifest(path: Path, *, tag: str, manifest: Mapping[str, Any], media_type: str = MANIFEST) -> str:
    """Tag a hand-made manifest, however wrong it is; returns its digest."""
    descriptor = write_json(path, manifest, media_type)
    _tag(path, tag, descriptor)
    return str(descriptor["digest"])


def write_blob(path: Path, data: bytes, media_type: str) -> dict[str, Any]:
    """Store bytes in the layout and return their descriptor."""
    return _adopt(path, io.BytesIO(data), media_type)


def write_json(path: Path, value: Mapping[str, Any], media_type: str) -> dict[str, Any]:
    """Store a JSON document in the layout and return its descriptor."""
    return write_blob(path, json.dumps(value, separators=(",", ":")).encode(), media_type)


def write_layer(path: Path, layer: LayerTar, compression: Compression = "gzip") -> tuple[dict[str, Any], str]:
    """Compress and store a layer; returns its descriptor and its diffID (the digest of the uncompressed tar)."""
    with _open_layer(layer) as source, tempfile.TemporaryFile() as packed:
        diff_id = _compress(source, packed, compression)
        packed.seek(0)
        return _adopt(path, packed, _LAYER + _SUFFIX[compression]), diff_id


def _write_image(path: Path, image: PlatformImage, compression: Compression) -> dict[str, Any]:
    stored = [write_layer(path, layer, compression) for layer in image.layers]
    config = {
        "architecture": image.architecture,
        "os": image.os,
        "config": dict(image.config),
        "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in stored]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": write_json(path, config, _CONFIG),
        "layers": [descriptor for descriptor, _ in stored],
    }
    return write_json(path, manifest, MANIFEST)


def _open_layer(layer: LayerTar) -> IO[bytes]:
    return io.BytesIO(layer) if isinstance(layer, bytes) else layer.open("rb")


def _compress(source: IO[bytes], target: IO[bytes], compression: Compression) -> str:
    """Copy ``source`` to ``target`` packed; returns the digest of what was read."""
    plain = hashlib.sha256()
    if compression == "zstd":
        data = source.read()
        plain.update(data)
        target.write(subprocess.run(["zstd", "-q", "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout)
    elif compression == "gzip":
        with gzip.GzipFile(fileobj=target, mode="wb", compresslevel=1, mtime=0) as packer:
            while chunk := source.read(1 << 20):
                plain.update(chunk)
                packer.write(chunk)
    else:
        while chunk := source.read(1 << 20):
            plain.update(chunk)
            target.write(chunk)
    return f"sha256:{plain.hexdigest()}"


def _adopt(path: Path, data: IO[bytes], media_type: str) -> dict[str, Any]:
    digest = hashlib.file_digest(data, "sha256").hexdigest()  # type: ignore[arg-type]
    blobs = path / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    data.seek(0)
    with (blobs / digest).open("wb") as blob:
        shutil.copyfileobj(data, blob)
        size = blob.tell()
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size}


def _tag(path: Path, tag: str, descriptor: Mapping[str, Any]) -> None:
    name = "org.opencontainers.image.ref.name"
    index = path / "index.json"
    known: list[dict[str, Any]] = json.loads(index.read_text())["manifests"] if index.exists() else []
    manifests = [item for item in known if item.get("annotations", {}).get(name) != tag]
    manifests.append({**descriptor, "annotations": {name: tag}})
    index.write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}))
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
