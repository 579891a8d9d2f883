"""iii-registry-oci: the hook implementations of this distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iii_core import hookimpl
from iii_core.records import Check, OpenContext, RegistryResolver
from iii_registry_oci.sources import accepts

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractAsyncContextManager

    from iii_core.images.port import ImageResolver


def _open(config: Any, context: OpenContext) -> AbstractAsyncContextManager[ImageResolver]:
    from iii_registry_oci.resolver import open_resolver

    return open_resolver(config, context)


@hookimpl
def iii_registry_resolvers() -> Iterable[RegistryResolver]:
    """Declare ``oci``."""
    yield RegistryResolver(name="oci", priority=10, accepts=accepts, open=_open)


@hookimpl
def iii_checks() -> Iterable[Check]:
    """Declare rows of ``iii doctor``."""
    from iii_registry_oci import checks

    yield Check(name="skopeo", run=checks.check_skopeo)
    yield Check(name="sqfstar", run=checks.check_sqfstar)
