"""The little of libvirt's Python API that is used here, typed; the binding itself has no types.

https://libvirt.org/html/libvirt-libvirt-domain.html
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast


class Domain(Protocol):
    """``virDomain``."""

    def name(self) -> str: ...
    def destroy(self) -> int: ...
    def isActive(self) -> int: ...  # noqa: N802  # libvirt's names
    def suspend(self) -> int: ...
    def resume(self) -> int: ...
    def snapshotCreateXML(self, xml: str, flags: int) -> object: ...  # noqa: N802


class Connect(Protocol):
    """``virConnect``."""

    def close(self) -> int: ...
    def isAlive(self) -> int: ...  # noqa: N802
    def createXML(self, xml: str, flags: int) -> Domain: ...  # noqa: N802
    def restoreFlags(self, path: str, xml: str | None, flags: int) -> int: ...  # noqa: N802
    def getLibVersion(self) -> int: ...  # noqa: N802
    def lookupByName(self, name: str) -> Domain: ...  # noqa: N802
    def listAllDomains(self, flags: int = 0) -> list[Domain]: ...  # noqa: N802
    def domainEventRegisterAny(  # noqa: N802
        self, domain: Domain | None, event: int, callback: Callable[..., None], opaque: Any
    ) -> int: ...
    def domainEventDeregisterAny(self, callback: int) -> None: ...  # noqa: N802


class Library(Protocol):
    """The module ``libvirt``."""

    libvirtError: type[Exception]  # noqa: N815
    VIR_DOMAIN_EVENT_ID_LIFECYCLE: int
    VIR_DOMAIN_EVENT_STOPPED: int
    VIR_DOMAIN_START_AUTODESTROY: int
    VIR_DOMAIN_SAVE_RUNNING: int
    VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA: int
    VIR_ERR_NO_DOMAIN: int

    def open(self, name: str) -> Connect: ...
    def registerErrorHandler(self, f: Callable[..., None], ctx: Any) -> None: ...  # noqa: N802
    def virEventRegisterDefaultImpl(self) -> int: ...  # noqa: N802
    def virEventRunDefaultImpl(self) -> int: ...  # noqa: N802


def load() -> Library:
    """Import the binding, which starts nothing yet. Raises ``ImportError``."""
    import importlib

    return cast("Library", importlib.import_module("libvirt"))
