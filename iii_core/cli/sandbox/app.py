"""``iii sandbox``: what isolates workers on this machine."""

from __future__ import annotations

import typer

from iii_core.cli.commands import GROUPS
from iii_core.cli.extensible import ExtensibleGroup


class SandboxGroup(ExtensibleGroup):
    """Commands of the core, and those of plugins that are called ``sandbox.…``."""

    prefix = "sandbox."
    lazy = GROUPS["sandbox"]


app = typer.Typer(add_completion=False, cls=SandboxGroup, rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def sandbox() -> None:
    """See and prepare what isolates workers."""
