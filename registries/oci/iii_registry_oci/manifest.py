"""Manifests, indexes and image configurations, checked before anything acts on them (OCI image-spec; Docker schema 2).

What a document *is* is told by its content, because the registry's word for it is not covered by its digest. A
document that could be read as two kinds is refused.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from iii_core.errors import DigestMismatch, ImageUnsafe, NoMatchingPlatform
from iii_core.images.port import ImageConfig
from iii_registry_oci.layers.entry import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from iii_registry_oci.layers.limits import Limits

INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
CONFIG_TYPES = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
LAYER_TYPES = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
)
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "ppc64le": "ppc64le", "s390x": "s390x"}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_MAX_TEXT = 128 * 1024  # Linux: MAX_ARG_STRLEN, the longest argument or variable a program can be given
_MAX_ITEMS = 4096
_REF_NAME = "org.opencontainers.image.ref.name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What an image is for, in Go's words. A ``variant`` of "" stands for any."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """A blob: its digest (``sha256:…``), its size in bytes, and what it is said to be and to be called."""

    digest: str
    size: int
    media_type: str
    platform: Platform | None = None
    ref_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One image: its configuration and its layers, base first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """Images for several platforms."""

    manifests: tuple[Descriptor, ...]


def host_platform() -> Platform:
    """What this machine runs."""
    machine = platform.machine()
    return Platform(os="linux", architecture=_MACHINES.get(machine, machine))


def parse_document(raw: bytes, limits: Limits) -> Manifest | Index:
    """Read a manifest or an index. Raises `ImageUnsafe`."""
    document = _load(raw, "manifest", limits)
    media_type = _text(document.get("mediaType", ""), "The manifest's mediaType")
    if document.get("schemaVersion") != 2:
        raise _unsafe(f"The manifest's schemaVersion is {_shown(document.get('schemaVersion'))}; only 2 is supported")
    if "manifests" in document and ("layers" in document or "config" in document):
        raise _unsafe("The manifest is an index and an image at once")
    if "manifests" in document:
        _check_type(media_type, INDEX_TYPES, "index")
        return Index(manifests=_descriptors(document["manifests"], "manifests", limits))
    _check_type(media_type, MANIFEST_TYPES, "manifest")
    return _manifest(document, limits)


def choose(index: Index, wanted: Platform) -> Descriptor:
    """The first manifest for ``wanted``. Raises `NoMatchingPlatform`, which lists what there is."""
    offered = [item for item in index.manifests if item.platform and item.platform.os != "unknown"]
    for item in offered:
        assert item.platform is not None
        if (item.platform.os, item.platform.architecture) == (wanted.os, wanted.architecture):
            return item
    raise no_platform(wanted, [item.platform for item in offered if item.platform])


def no_platform(wanted: Platform, offered: Sequence[Platform]) -> NoMatchingPlatform:
    """The error for an image that this machine cannot run."""
    names = [printable(str(item).encode(), 60) for item in offered[:40]]
    return NoMatchingPlatform(
        f"The image has no variant for {wanted}; it has {', '.join(names) or 'none at all'}",
        hint=f"use an image that is built for {wanted}",
        details={"wanted": str(wanted), "available": names},
    )


def parse_config(raw: bytes, manifest: Manifest, limits: Limits) -> tuple[Platform, ImageConfig, tuple[str, ...]]:
    """Read an image configuration: its platform, what it says about the process, and its layers' diffIDs.

    Raises `ImageUnsafe`, also where it does not have a diffID for each layer.
    """
    document = _load(raw, "configuration", limits)
    found = Platform(
        os=_text(document.get("os", ""), "The image's os"),
        architecture=_text(document.get("architecture", ""), "The image's architecture"),
    )
    rootfs = document.get("rootfs")
    diff_ids = _strings(_mapping(rootfs, "The image's rootfs").get("diff_ids"), "The image's diff_ids")
    if len(diff_ids) != len(manifest.layers) or not all(_DIGEST.match(item) for item in diff_ids):
        raise _unsafe(f"The image has {len(manifest.layers)} layers, but its configuration has {len(diff_ids)} diffIDs")
    return found, _image_config(_mapping(document.get("config") or {}, "The image's config")), diff_ids


def digest_of(raw: bytes) -> str:
    """``sha256:…`` of some bytes."""
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def check_digest(raw: bytes, expected: str, what: str) -> str:
    """The digest of ``raw``; raises `DigestMismatch` if it is not ``expected``."""
    actual = digest_of(raw)
    if actual != expected:
        raise DigestMismatch(
            f"{what} has the digest {actual}, expected {expected}",
            hint="the registry sent other bytes than it promised; try again, or ask who runs it",
            details={"expected": expected, "actual": actual},
        )
    return actual


def _image_config(config: Mapping[str, Any]) -> ImageConfig:
    working_dir = _text(config.get("WorkingDir") or "/", "The image's WorkingDir", 4096)
    if not working_dir.startswith("/") or ".." in working_dir.split("/"):
        raise _unsafe(f"The image's WorkingDir {_shown(working_dir)} is not an absolute path")
    if working_dir.lstrip("/").partition("/")[0] in ("proc", "sys", "dev"):
        raise _unsafe(f"The image's WorkingDir {_shown(working_dir)} lies in a file system of the kernel")
    return ImageConfig(
        env=tuple(_variable(item) for item in _strings(config.get("Env"), "The image's Env")),
        entrypoint=_strings(config.get("Entrypoint"), "The image's Entrypoint"),
        cmd=_strings(config.get("Cmd"), "The image's Cmd"),
        working_dir=working_dir,
        user=_user(_text(config.get("User") or "", "The image's User", 256)),
        stop_signal=_stop_signal(_text(config.get("StopSignal") or "", "The image's StopSignal", 32)),
    )


def _variable(item: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    if not name or not equals or not name.isprintable():
        raise _unsafe(f"The image's Env has {_shown(item)} where NAME=VALUE belongs")
    return name, value


def _user(user: str) -> str:
    """``user[:group]`` by name or number (image-spec); a number is an id that Linux has."""
    parts = user.split(":")
    if not user.isprintable() or len(parts) > 2 or any(char.isspace() for char in user):
        raise _unsafe(f"The image's User {_shown(user)} is not USER[:GROUP]")
    for part in parts:
        if part.lstrip("+-").isdigit() and not (part.isascii() and part.isdigit() and int(part) < 2**32 - 1):
            raise _unsafe(f"The image's User {_shown(user)} is not an id that exists")
    return user


def _stop_signal(name: str) -> str:
    if name and not re.fullmatch(r"(SIG)?[A-Z0-9]{1,10}([+-][0-9]{1,2})?|[0-9]{1,2}", name, re.ASCII):
        raise _unsafe(f"The image's StopSignal {_shown(name)} is not a signal")
    return name


def _manifest(document: Mapping[str, Any], limits: Limits) -> Manifest:
    config = _descriptor(document.get("config"), "config")
    if config.media_type not in CONFIG_TYPES:
        raise _unsafe(f"The manifest is for {_shown(config.media_type)}, not for a container image")
    if config.size > limits.manifest:
        raise _unsafe(f"The image configuration has {config.size} bytes (at most {limits.manifest})")
    layers = _descriptors(document.get("layers"), "layers", limits)
    for layer in layers:
        if layer.media_type not in LAYER_TYPES:
            raise _unsafe(f"The manifest has a layer of the unsupported type {_shown(layer.media_type)}")
    if sum(layer.size for layer in layers) > limits.total:
        raise _unsafe(f"The manifest's layers have more than {limits.total} bytes")
    if not layers:
        raise _unsafe("The image has no layers")
    return Manifest(config=config, layers=layers)


def _descriptors(value: object, what: str, limits: Limits) -> tuple[Descriptor, ...]:
    if not isinstance(value, list):
        raise _unsafe(f"The manifest has no list of {what}")
    items = cast("list[object]", value)
    if len(items) > limits.layers:
        raise _unsafe(f"The manifest has {len(items)} {what} (at most {limits.layers})")
    return tuple(_descriptor(item, what) for item in items)


def _descriptor(value: object, what: str) -> Descriptor:
    item = _mapping(value, f"The manifest's {what}")
    digest = _text(item.get("digest", ""), f"The digest in the manifest's {what}")
    if not _DIGEST.match(digest):
        raise _unsafe(f"The manifest's {what} has {_shown(digest)} where a sha256 digest belongs")
    size = item.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**63:
        raise _unsafe(f"The manifest's {what} has {_shown(size)} where a size belongs")
    if item.get("urls"):
        raise _unsafe(f"The manifest's {what} is to be fetched from elsewhere (a foreign layer)")
    media_type = _text(item.get("mediaType", ""), f"The mediaType in the manifest's {what}")
    found = item.get("platform")
    return Descriptor(
        digest=digest,
        size=size,
        media_type=media_type,
        platform=_platform(found) if found else None,
        ref_name=_ref_name(item.get("annotations")),
    )


def _ref_name(annotations: object) -> str:
    """The name in an image layout (image-spec, ``annotations.md``); "" where there is none that could be asked for."""
    name = cast("dict[str, object]", annotations).get(_REF_NAME) if isinstance(annotations, dict) else None
    return name if isinstance(name, str) else ""


def _platform(value: object) -> Platform:
    item = _mapping(value, "A platform in the manifest")
    texts = [_text(item.get(key) or "", f"The platform's {key}") for key in ("os", "architecture", "variant")]
    return Platform(os=texts[0], architecture=texts[1], variant=texts[2])


def _check_type(media_type: str, known: Sequence[str], what: str) -> None:
    if media_type and media_type not in known:
        raise _unsafe(f"The document is laid out as an image {what}, but says it is {_shown(media_type)}")


def _load(raw: bytes, what: str, limits: Limits) -> Mapping[str, Any]:
    if len(raw) > limits.manifest:
        raise _unsafe(f"The image {what} has more than {limits.manifest} bytes")
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, _Duplicate) else "it is not JSON"
        raise _unsafe(f"The image {what} cannot be read: {reason}") from None
    return _mapping(value, f"The image {what}")


class _Duplicate(ValueError):
    """A key that comes twice: two readers would see two documents."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Duplicate("it has a key twice")
    return found


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _unsafe(f"{what} is not an object")
    return cast("dict[str, Any]", value)


def _strings(value: object, what: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(cast("list[object]", value)) > _MAX_ITEMS:
        raise _unsafe(f"{what} is not a list of at most {_MAX_ITEMS} texts")
    return tuple(_text(item, what, _MAX_TEXT) for item in cast("list[object]", value))


def _text(value: object, what: str, most: int = 256) -> str:
    if not isinstance(value, str):
        raise _unsafe(f"{what} is not a text")
    if len(value) > most or "\0" in value:
        raise _unsafe(f"{what} is longer than {most} characters or holds NUL")
    return value


def _shown(value: object) -> str:
    return f"'{printable(str(value)[:200].encode(errors='surrogatepass'), 80)}'"


def _unsafe(reason: str) -> ImageUnsafe:
    return ImageUnsafe(reason, hint="the image is damaged, hostile or of a kind that iii does not run")
