"""``iii.lock``: what exactly each worker is that the project runs (spec worker-cli §2.2).

The original pins what came from its registry alone. Here a worker that was added as an OCI image is pinned too, with an
entry of ``type: image`` whose reference holds a digest: a tag moves, and a project must go on running what was added.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, cast

from iii_core.errors import ConfigError, LockfileMismatch
from iii_core.project.files import write_atomic
from iii_core.project.names import is_valid_name
from iii_core.project.read import parse_document, read_document, to_data
from iii_core.project.render import render_block

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iii_core.project.locate import Project

VERSION: Final = 1
FILE_NAME: Final = "iii.lock"
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_PINNED = re.compile(r"[^\s@]+@sha256:[0-9a-f]{64}\Z")
_RANGE = re.compile(r"\s*(?:[~^]|[<>]=?|=)?\s*v?(?:\d+|[xX*])(?:\.(?:\d+|[xX*])){0,2}(?:[-+][0-9A-Za-z.+-]+)?\s*\Z")
_SOURCE_FIELDS: Final = {  # kind: text fields
    "binary": (),
    "image": ("image",),
    "bundle": ("archive_url", "sha256"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LockEntry:
    """One pinned worker.

    Attributes:
        kind: ``binary``, ``image``, ``bundle`` or ``engine``.
        dependencies: worker names with their version ranges.
        source: as the file has it, without ``kind``; None for ``engine``.
    """

    version: str
    kind: str
    dependencies: Mapping[str, str] = field(default_factory=dict[str, str])
    source: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """A whole lockfile. ``declared`` are the project manifest's own dependencies, None where there is no manifest."""

    workers: Mapping[str, LockEntry] = field(default_factory=dict[str, LockEntry])
    declared: Mapping[str, str] | None = None
    manifest_hash: str | None = None


def load_lock(project: Project) -> Lock:
    """Read and check the project's lockfile; no file is an empty lock. Raises `ConfigError`, `ConfigIoError`."""
    if not project.lock_path.exists():
        return Lock()
    return _Checker().lock(to_data(read_document(project.lock_path).root))


def locked_source(lock: Lock, name: str, source: str) -> str:
    """What to run for a worker whose entry in config.yaml says ``source``: what the lock pins it to, if it does.

    Raises `LockfileMismatch` where the lock pins that name to something else.
    """
    entry = lock.workers.get(name)
    if entry is None:
        return source
    pinned = pin_of(lock, name)
    if pinned is not None and source in (pinned, pinned.partition("@")[0]):
        return pinned
    raise LockfileMismatch(
        f"worker {name!r} is {source} in config.yaml, and {pinned or f'of type {entry.kind}'} in {FILE_NAME}",
        hint=f"'iii worker reinstall {name}' fetches what config.yaml names, and pins that",
        details={"name": name, "source": source, "locked": pinned},
    )


def pin_of(lock: Lock, name: str) -> str | None:
    """The image that the lock pins a worker to, with its digest."""
    entry = lock.workers.get(name)
    return entry.source["image"] if entry is not None and entry.kind == "image" and entry.source else None


def with_image(lock: Lock, name: str, source: str, pin: str | None, version: str | None) -> Lock:
    """The lock with a worker pinned to the digest of ``pin``; without a pin the worker is not in the lock.

    ``source`` is what config.yaml says; ``version`` what the image says of itself, else its tag takes the place.
    """
    if pin is None:
        return without_worker(lock, name)
    image = source if "@" in source else f"{source}@{pin.rpartition('@')[2]}"
    tag = source.partition("@")[0].rpartition("/")[2].partition(":")[2]
    known = lock.workers.get(name)
    entry = LockEntry(
        version=version or tag or pin.rpartition("@")[2],
        kind="image",
        dependencies=known.dependencies if known else {},
        source={"image": image},
    )
    return replace(lock, workers={**lock.workers, name: entry})


def without_worker(lock: Lock, name: str) -> Lock:
    """The lock without a worker."""
    return replace(lock, workers={known: entry for known, entry in lock.workers.items() if known != name})


def parse_lock(text: str) -> Lock:
    """Check a lockfile's text. Raises `ConfigError`."""
    return _Checker().lock(to_data(parse_document(text, name=FILE_NAME).root))


def save_lock(project: Project, lock: Lock, *, shrinking: bool = False) -> None:
    """Write the lockfile atomically, in its canonical form. The caller holds the project lock."""
    write_atomic(project.lock_path, render_lock(lock).encode(), shrinking=shrinking)


def render_lock(lock: Lock) -> str:
    """The canonical text: keys sorted, no document marker. Raises `ConfigError` for what could not be read back."""
    data: dict[str, Any] = {"version": VERSION}
    if lock.manifest_hash is not None:
        data["manifest_hash"] = lock.manifest_hash
    if lock.declared is not None:
        data["declared_dependencies"] = dict(sorted(lock.declared.items()))
    data["workers"] = {name: _entry_data(entry) for name, entry in sorted(lock.workers.items())}
    text = "\n".join(render_block(data, 0)) + "\n"
    parse_lock(text)
    return text


def hash_dependencies(dependencies: Mapping[str, str]) -> str:
    """The ``manifest_hash`` of a manifest's dependencies."""
    lines = "".join(f"{name}={wanted}\n" for name, wanted in sorted(dependencies.items()))
    return f"sha256:v1:{hashlib.sha256(lines.encode()).hexdigest()}"


def _entry_data(entry: LockEntry) -> dict[str, Any]:
    data: dict[str, Any] = {
        "version": entry.version,
        "type": entry.kind,
        "dependencies": dict(sorted(entry.dependencies.items())),
    }
    if entry.source is not None:
        data["source"] = {"kind": entry.kind, **_sorted(entry.source)}
    return data


def _sorted(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    mapping = cast("dict[str, Any]", value)
    return {key: _sorted(mapping[key]) for key in sorted(mapping)}


class _Checker:
    """Turns data into the model, or says what is wrong with it."""

    def lock(self, data: Any) -> Lock:
        top = self.mapping(data, "the file")
        if top.get("version") != VERSION:
            raise _invalid(f"unsupported version {top.get('version')!r} (expected {VERSION})")
        entries = self.mapping(top.get("workers"), "'workers'")
        declared = top.get("declared_dependencies")
        ranges = None if declared is None else self.ranges(declared, "'declared_dependencies'")
        manifest_hash = top.get("manifest_hash")
        if (manifest_hash is None) != (ranges is None):
            raise _invalid("'manifest_hash' and 'declared_dependencies' come together or not at all")
        if ranges is not None and manifest_hash != hash_dependencies(ranges):
            raise _invalid("'manifest_hash' does not match 'declared_dependencies'")
        return Lock(
            workers={self.name(name): self.entry(name, entry) for name, entry in entries.items()},
            declared=ranges,
            manifest_hash=manifest_hash,
        )

    def entry(self, name: str, data: Any) -> LockEntry:
        where = f"worker {name!r}"
        entry = self.mapping(data, where)
        kind = entry.get("type")
        if kind not in ("engine", *_SOURCE_FIELDS):
            raise _invalid(f"{where}: unknown type {kind!r}")
        version = entry.get("version")
        if version is None or isinstance(version, (dict, list)):
            raise _invalid(f"{where}: 'version' is missing")
        dependencies = self.ranges(entry.get("dependencies") or {}, where)
        source = entry.get("source")
        if kind == "engine":
            if source is not None:
                raise _invalid(f"{where}: an engine worker has no source")
            return LockEntry(version=str(version), kind=kind, dependencies=dependencies)
        return LockEntry(
            version=str(version), kind=kind, dependencies=dependencies, source=self.source(source, kind, where)
        )

    def source(self, data: Any, kind: str, where: str) -> dict[str, Any]:
        source = self.mapping(data, f"{where}: 'source'")
        if source.pop("kind", None) != kind:
            raise _invalid(f"{where}: the source's kind is not {kind!r}")
        for key in _SOURCE_FIELDS[kind]:
            if not isinstance(source.get(key), str) or not source[key]:
                raise _invalid(f"{where}: {key!r} is missing in its source")
        if kind == "image" and not _PINNED.match(source["image"]):
            raise _invalid(f"{where}: the image is not pinned by digest (…@sha256:…)")
        if kind == "bundle" and not _SHA256.match(source["sha256"]):
            raise _invalid(f"{where}: 'sha256' is not 64 hexadecimal digits")
        if kind == "binary":
            source = {"artifacts": self.artifacts(source, where)}
        return source

    def artifacts(self, source: dict[str, Any], where: str) -> dict[str, Any]:
        if "artifacts" not in source and "target" in source:  # the older form holds one artifact
            source = {"artifacts": {source["target"]: {key: source.get(key) for key in ("url", "sha256")}}}
        artifacts = self.mapping(source.get("artifacts"), f"{where}: 'artifacts'")
        if not artifacts:
            raise _invalid(f"{where}: no artifacts")
        for triple, data in artifacts.items():
            artifact = self.mapping(data, f"{where}: artifact {triple!r}")
            if not triple or not artifact.get("url") or not _SHA256.match(str(artifact.get("sha256"))):
                raise _invalid(f"{where}: artifact {triple!r} needs a url and a sha256 of 64 hexadecimal digits")
        return artifacts

    def ranges(self, data: Any, where: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, wanted in self.mapping(data, f"{where}: dependencies").items():
            text = str(wanted)
            if not all(_RANGE.match(part) for part in text.split(",")):
                raise _invalid(f"{where}: {text!r} of {name!r} is not a version range")
            found[self.name(name)] = text
        return found

    def mapping(self, data: Any, where: str) -> dict[str, Any]:
        if not isinstance(data, dict):
            raise _invalid(f"{where} must be a mapping")
        return cast("dict[str, Any]", dict(data))  # pyright: ignore[reportUnknownArgumentType]

    def name(self, name: str) -> str:
        if not is_valid_name(name):
            raise _invalid(f"{name!r} is not a worker name")
        return name


def _invalid(message: str) -> ConfigError:
    return ConfigError(f"{FILE_NAME}: {message}", details={"path": FILE_NAME})
