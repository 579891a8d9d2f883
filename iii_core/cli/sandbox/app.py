"""``iii sandbox``: what isolates workers on this machine."""

from __future__ import annotations

import typer

from iii_core.cli.extensible import ExtensibleGroup
from iii_core.cli.lazy import Lazy, from_module


class SandboxGroup(ExtensibleGroup):
    """Commands of the core, and those of plugins that are called ``sandbox.…``."""

    prefix = "sandbox."
    lazy = {  # noqa: RUF012 - declared as a ClassVar by the base
        "backends": Lazy("List sandbox backends, and which work here", from_module("iii_core.cli.sandbox.backends")),
    }


app = typer.Typer(add_completion=False, cls=SandboxGroup, rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def sandbox() -> None:
    """See and prepare what isolates workers."""
