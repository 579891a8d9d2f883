"""Which sources mean an image; imports nothing, because every command line asks."""

from __future__ import annotations

LOCAL_SCHEMES = ("oci", "oci-archive", "docker-archive")


def accepts(source: str) -> bool:
    """Whether ``iii worker add SOURCE`` means an image: spec worker-cli §1.1, rule 2, and the local schemes."""
    if source.startswith((".", "/", "~")):
        return False
    return local_scheme(source) is not None or "/" in source or (":" in source and "@" not in source)


def local_scheme(source: str) -> str | None:
    """The scheme of a local image; None for a registry's."""
    scheme, colon, _ = source.partition(":")
    return scheme if colon and scheme in LOCAL_SCHEMES else None
