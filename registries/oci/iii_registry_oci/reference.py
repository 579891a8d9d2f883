"""Image references: the distribution project's grammar and the local schemes.

A registry reference is ``[registry[:port]/]path[:tag][@sha256:…]``; what is left out becomes ``docker.io``,
``library/`` and ``:latest``. A local image has its scheme in front: ``oci:DIR[:tag]``, ``oci-archive:FILE[:tag]``,
``docker-archive:FILE[:ref]``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from iii_core.errors import UsageError
from iii_registry_oci.sources import local_scheme

DEFAULT_REGISTRY = "docker.io"
MAX_LENGTH = 1024
MAX_REPOSITORY = 255  # distribution: reference.NameTotalLengthMax

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:.]+\])(?::[0-9]{{1,5}})?\Z")
_PATH = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_SELECTOR = re.compile(r"[A-Za-z0-9_@][A-Za-z0-9_./:@-]{0,255}\Z")
_ALGORITHM = re.compile(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[0-9a-fA-F]{32,}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryReference:
    """An image in a registry; ``tag`` is None only where ``digest`` is not. A digest decides over a tag."""

    registry: str
    repository: str
    tag: str | None
    digest: str | None

    @property
    def canonical(self) -> str:
        """The reference with nothing left out, such as ``docker.io/library/x:latest``."""
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.registry}/{self.repository}{tag}{digest}"

    @property
    def name(self) -> str:
        """The worker name it suggests (spec worker-cli §1.1)."""
        return self.repository.rpartition("/")[2]

    @property
    def transport(self) -> str:
        """What skopeo calls it; skopeo takes a tag or a digest, never both."""
        return self.pinned(self.digest) if self.digest else f"docker://{self.registry}/{self.repository}:{self.tag}"

    def pinned(self, digest: str) -> str:
        """What skopeo calls the manifest ``digest`` of the same repository."""
        return f"docker://{self.registry}/{self.repository}@{digest}"

    def pin(self, digest: str) -> str | None:
        """The reference with the digest that it leads to now, which is an index's where there is one."""
        return self.canonical if self.digest else f"{self.canonical}@{digest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalReference:
    """An image in a file or folder of this machine. ``path`` is absolute; ``selector`` is a tag or a reference."""

    scheme: str
    path: Path
    selector: str | None
    digest: None = None

    @property
    def canonical(self) -> str:
        """The reference with an absolute path."""
        return f"{self.scheme}:{self.path}" + (f":{self.selector}" if self.selector else "")

    @property
    def name(self) -> str:
        """The worker name it suggests: the last path segment without its suffixes, lower-cased."""
        if self.scheme == "docker-archive" and self.selector:
            return self.selector.rpartition("/")[2].partition(":")[0]
        return self.path.name.partition(".")[0].lower()

    def pin(self, digest: str) -> str | None:
        """None: what a file holds cannot be asked for again once another one took its place."""
        return None


Reference: TypeAlias = RegistryReference | LocalReference


def parse(source: str, *, cwd: Path) -> Reference:
    """Read a reference. ``cwd`` is where relative paths of local images begin. Raises `UsageError`."""
    if len(source) > MAX_LENGTH:
        raise _fault(source, f"is longer than {MAX_LENGTH} characters")
    if not source.isprintable():
        raise _fault(source, "holds control characters")
    scheme = local_scheme(source)
    return _parse_local(scheme, source, cwd) if scheme else _parse_registry(source)


def _parse_local(scheme: str, source: str, cwd: Path) -> LocalReference:
    path, colon, selector = source.removeprefix(f"{scheme}:").partition(":")
    if not path:
        raise _fault(source, "names no path", hint=f"write {scheme}:PATH[:TAG]")
    if colon and not _SELECTOR.match(selector):
        raise _fault(source, f"has {selector!r} where a tag belongs", hint="the path may not hold ':'")
    try:
        expanded = Path(path).expanduser()
    except RuntimeError as error:
        raise _fault(source, "begins in a home folder that does not exist") from error
    return LocalReference(scheme=scheme, path=cwd / expanded, selector=selector or None)


def _parse_registry(source: str) -> RegistryReference:
    rest, at, digest = source.partition("@")
    if at and not _DIGEST.match(digest):
        if _ALGORITHM.match(digest) and not digest.startswith("sha256:"):
            raise _fault(
                source, f"uses the digest algorithm {digest.partition(':')[0]}", hint="only sha256 is supported"
            )
        raise _fault(
            source, f"has {digest!r} where a digest belongs", hint="write @sha256: and 64 lower-case hex digits"
        )
    registry, path = _split_registry(rest)
    repository, colon, tag = path.partition(":")
    if colon and not _TAG.match(tag):
        raise _fault(source, f"has {tag!r} where a tag belongs", hint="a tag is letters, digits, '.', '_' and '-'")
    if not _REGISTRY.match(registry):
        raise _fault(source, f"has {registry!r} where a registry belongs", hint="write HOST[:PORT]/NAME[:TAG]")
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = f"library/{repository}"
    _check_repository(source, repository)
    return RegistryReference(
        registry=registry,
        repository=repository,
        tag=tag or (None if digest else "latest"),
        digest=digest or None,
    )


def _split_registry(rest: str) -> tuple[str, str]:
    """Part registry and path; the first segment is a registry only if it looks like a host (distribution)."""
    first, slash, path = rest.partition("/")
    if slash and (first == "localhost" or any(char in first for char in ".:[") or first.lower() != first):
        return (DEFAULT_REGISTRY if first == "index.docker.io" else first.lower()), path
    return DEFAULT_REGISTRY, rest


def _check_repository(source: str, repository: str) -> None:
    if len(repository) > MAX_REPOSITORY:
        raise _fault(source, f"has a name longer than {MAX_REPOSITORY} characters")
    for segment in repository.split("/"):
        if not _PATH.match(segment):
            hint = "image names are lower-case" if _PATH.match(segment.lower()) else "write HOST[:PORT]/NAME[:TAG]"
            raise _fault(source, f"has {segment!r} where a part of a name belongs", hint=hint)


def _fault(source: str, reason: str, *, hint: str | None = None) -> UsageError:
    shown = source if len(source) <= 120 else source[:117] + "..."
    return UsageError(f"Image reference {shown!r} {reason}", hint=hint, details={"reference": shown})
