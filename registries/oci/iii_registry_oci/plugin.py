"""iii-registry-oci: the hook implementations of this distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iii_core import hookimpl
from iii_core.records import OpenContext, RegistryResolver

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractAsyncContextManager

    from iii_core.images.port import ImageResolver

LOCAL_SCHEMES = ("oci:", "oci-archive:", "docker-archive:")


def accepts(source: str) -> bool:
    """Whether a source is an image (spec worker-cli §1.1, rule 2) or begins with the scheme of a local one."""
    if source.startswith((".", "/", "~")):
        return False
    return source.startswith(LOCAL_SCHEMES) or "/" in source or (":" in source and "@" not in source)


def _open(config: Any, context: OpenContext) -> AbstractAsyncContextManager[ImageResolver]:
    from iii_registry_oci.resolver import open_resolver

    return open_resolver(config, context)


@hookimpl
def iii_registry_resolvers() -> Iterable[RegistryResolver]:
    """Declare ``oci``."""
    yield RegistryResolver(name="oci", priority=10, accepts=accepts, open=_open)
