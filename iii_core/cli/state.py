"""What the options of ``iii`` itself say, handed to every command."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer

    from iii_core.cli.listing import Listing
    from iii_core.host import PluginHost
    from iii_core.project.locate import Project


@dataclass(kw_only=True)
class State:
    """One per run of the program; filled in by the options of ``iii``, read by its commands.

    Attributes:
        config: ``-c``.
        use_plugins: false with ``--no-plugins``.
        debug: whether unexpected errors show their traceback.
    """

    config: str | None = None
    use_plugins: bool = True
    debug: bool = False

    @cached_property
    def project(self) -> Project:
        """The project; located when it is first asked for."""
        from iii_core.project.locate import locate_project

        return locate_project(self.config)

    @cached_property
    def plugins(self) -> PluginHost:
        """The plugins; importing them is not free, so commands that need none leave this alone."""
        from iii_core.host import PluginHost

        return PluginHost.create(installed=self.use_plugins, environ=os.environ)

    @cached_property
    def listing(self) -> Listing:
        """The commands that plugins add, by name; quick where they were asked for before."""
        from iii_core.cli.listing import Listing, plugin_listing

        return plugin_listing(lambda: self.plugins) if self.use_plugins else Listing()


def state_of(context: typer.Context) -> State:
    """The state of the running program."""
    state = context.find_object(State)
    return State() if state is None else state
