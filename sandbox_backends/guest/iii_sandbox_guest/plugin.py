"""iii-sandbox-guest: the hook implementations of this distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iii_core import hookimpl
from iii_core.records import Check, Command

if TYPE_CHECKING:
    from collections.abc import Iterable

    import typer


@hookimpl
def iii_commands() -> Iterable[Command]:
    """Declare commands of ``iii sandbox``."""
    yield Command(name="sandbox.setup", help="Fetch the kernel that virtual machines boot", load=_load_setup)
    yield Command(name="sandbox.check", help="Check that a backend keeps its promises here", load=_load_check)


def _load_setup() -> typer.Typer:
    from iii_sandbox_guest.cli import app

    return app


def _load_check() -> typer.Typer:
    from iii_sandbox_guest.check_cli import app

    return app


@hookimpl
def iii_checks() -> Iterable[Check]:
    """Declare rows of ``iii doctor``."""
    from iii_sandbox_guest import checks

    yield Check(name="guest-agent", run=checks.check_agent)
    yield Check(name="guest-kernel", run=checks.check_kernel)
