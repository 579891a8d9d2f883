"""What skopeo's words mean in terms of our errors.

skopeo has one exit status for everything, so its message decides: a table of phrases, most telling first. A phrase
that a later skopeo words differently ends in a plain `ImageError` that still shows the message.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from iii_core.errors import (
    DigestMismatch,
    ImageError,
    ImageNotFound,
    NoMatchingPlatform,
    RegistryAuthError,
    RegistryUnreachable,
    StorageFull,
)
from iii_registry_oci.layers.entry import printable
from iii_registry_oci.reference import DEFAULT_REGISTRY, LocalReference, Reference

MESSAGE_MAX = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Meaning:
    kind: type[ImageError]
    text: str
    hint: str
    pattern: re.Pattern[str]
    transient: bool = False


def _meaning(kind: type[ImageError], text: str, hint: str, *phrases: str, transient: bool = False) -> _Meaning:
    pattern = re.compile("|".join(phrases), re.IGNORECASE)
    return _Meaning(kind=kind, text=text, hint=hint, pattern=pattern, transient=transient)


_MEANINGS = (
    _meaning(
        StorageFull,
        "no space is left in the image store",
        "free some disk space; `iii worker remove` and `clear` help",
        "no space left on device",
        "disk quota exceeded",
        "file too large",
        "file size limit exceeded",
    ),
    _meaning(
        RegistryAuthError,
        "the auth file cannot be read",
        "check REGISTRY_AUTH_FILE and ~/.docker/config.json",
        "getting username and password",
        "unmarshaling JSON at",
    ),
    _meaning(
        DigestMismatch,
        "the registry sent other bytes than it promised",
        "try again, or ask who runs the registry",
        "digest did not match",
        "verification failed for digest",
        "does not match digest",
        "digest .* does not match",
        "blob size mismatch",
    ),
    _meaning(
        ImageNotFound,
        "there is no such image",
        "check name and tag",
        "manifest unknown",
        "name unknown",
        "blob unknown",
        "repository name not known",
        "no descriptor found",
        "tag .* not found",
        "status code from registry 404",
        "no such file or directory",
        "file does not exist",
        "more than one image in oci, choose an image",
    ),
    _meaning(
        RegistryAuthError,
        "the registry refuses access",
        "log in with `skopeo login` or `docker login`, or set REGISTRY_AUTH_FILE; check that the name is right too",
        "unauthorized",
        "authentication required",
        "denied",
        "invalid username/password",
        "status code from registry 40[13]",
        "invalid status code .* 40[13]",
    ),
    _meaning(
        NoMatchingPlatform,
        "the image has no variant for this machine",
        "use an image that is built for it",
        "no image found in (?:image index|manifest list)",
    ),
    _meaning(
        RegistryUnreachable,
        "the registry speaks plain HTTP",
        "serve it over HTTPS, or list its host in III_INSECURE_REGISTRIES",
        "server gave HTTP response to HTTPS client",
    ),
    _meaning(
        RegistryUnreachable,
        "the registry's certificate is not trusted",
        "install its authority's certificate, or point SSL_CERT_FILE at it",
        "x509:",
        "certificate",
    ),
    _meaning(
        RegistryUnreachable,
        "the registry does not answer",
        "check the address, and that the registry runs",
        "no such host",
        "connection refused",
        "network is unreachable",
        "no route to host",
    ),
    _meaning(
        RegistryUnreachable,
        "the registry does not answer as it should",
        "try again later",
        "i/o timeout",
        "timeout",
        "connection reset",
        "unexpected EOF",
        r"\bEOF\b",
        "broken pipe",
        "deadline exceeded",
        "toomanyrequests",
        "too many requests",
        "temporary failure",
        "status code from registry (?:429|5..)",
        "unexpected http status:? (?:429|5..)",
        "status: 5..",
        "http2:",
        transient=True,
    ),
    _meaning(
        RegistryUnreachable,
        "the registry does not answer as it should",
        "check the address",
        "pinging container registry",
        "dial tcp",
    ),
)
_OF_REGISTRIES = (RegistryAuthError, RegistryUnreachable)


def translate(stderr: bytes, reference: Reference, status: int) -> ImageError:
    """The error for what skopeo wrote before it ended with ``status``."""
    said = _message(stderr) or f"skopeo ended with status {status}"
    details = {"reference": reference.canonical, "skopeo": said}
    for meaning in _MEANINGS:
        if isinstance(reference, LocalReference) and meaning.kind in _OF_REGISTRIES:
            continue
        if meaning.pattern.search(said.replace(reference.canonical, "")):
            return meaning.kind(
                f"{reference.canonical}: {meaning.text} ({said})"
                if _adds(meaning)
                else f"{reference.canonical}: {meaning.text}",
                hint=_hint(meaning, reference),
                details={**details, "transient": meaning.transient},
            )
    return ImageError(f"{reference.canonical}: {said}", details=details)


def _adds(meaning: _Meaning) -> bool:
    """Whether skopeo's own words say more than ours."""
    return meaning.kind in (RegistryUnreachable, DigestMismatch)


def _hint(meaning: _Meaning, reference: Reference) -> str:
    if meaning.kind is not ImageNotFound:
        return meaning.hint
    if isinstance(reference, LocalReference):
        return "check the path and the tag"
    if reference.registry == DEFAULT_REGISTRY:
        return (
            f"{meaning.hint}; images of this machine need their scheme, such as docker-archive:FILE.tar, "
            "oci-archive:FILE.tar or oci:FOLDER"
        )
    return meaning.hint


def _message(stderr: bytes) -> str:
    """The last message, without what is secret in an address: user information and query."""
    lines = stderr.decode(errors="backslashreplace").strip().splitlines()
    last = next((line for line in reversed(lines) if "level=fatal" in line), lines[-1] if lines else "")
    found = re.search(r'msg="((?:[^"\\]|\\.)*)"', last)
    text = re.sub(r"\\(.)", r"\1", found[1]) if found else last
    text = re.sub(r"://[^/@\s\"]+@", "://", text)
    text = re.sub(r"(https?://[^\s?\"]+)\?[^\s\"]*", r"\1", text)
    text = re.sub(r'^Error parsing image name "[^"]*": ', "", text)
    return printable(text.encode(errors="surrogateescape"), MESSAGE_MAX)
