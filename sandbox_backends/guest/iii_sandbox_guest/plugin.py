"""iii-sandbox-guest: the hook implementations of this distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iii_core import hookimpl
from iii_core.records import Command

if TYPE_CHECKING:
    from collections.abc import Iterable

    import typer


@hookimpl
def iii_commands() -> Iterable[Command]:
    """Declare ``iii sandbox``."""
    yield Command(name="sandbox", help="Prepare this machine for sandboxes", load=_load)


def _load() -> typer.Typer:
    from iii_sandbox_guest.cli import app

    return app
