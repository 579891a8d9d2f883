"""``iii``: the options of the program, its commands, and the engine in the foreground where no command is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from iii_core.cli.lazy import Lazy, LazyCommand, LazyGroup, from_module
from iii_core.cli.state import State, state_of
from iii_core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iii_core.records import Command


class RootGroup(LazyGroup):
    """The commands of the core, then those of plugins."""

    lazy = {  # noqa: RUF012 - declared as a ClassVar by the base
        "worker": Lazy("Add, run and inspect the workers of this project", from_module("iii_core.cli.worker.app")),
        "trigger": Lazy("Call a function", from_module("iii_core.cli.trigger")),
        "t": Lazy("Short for trigger", from_module("iii_core.cli.trigger"), hidden=True),
        "plugins": Lazy("See which plugins are installed", from_module("iii_core.cli.plugins")),
    }

    def list_commands(self, ctx: Any) -> list[str]:
        """All commands, for help and completion."""
        return [*super().list_commands(ctx), *(name for name in self._listed(ctx) if name not in self.lazy)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command of the core never waits for plugins to be found, and one of a plugin only when it is to run."""
        found = super().get_command(ctx, cmd_name)
        if found is not None:
            return found
        help_text = self._listed(ctx).get(cmd_name)
        if help_text is None and cmd_name not in self._declared(ctx):
            return None
        return LazyCommand(cmd_name, Lazy(help_text or "", lambda: self._load(ctx, cmd_name)))

    def _load(self, ctx: Any, name: str) -> Any:
        declared = self._declared(ctx).get(name)
        if declared is None:
            raise UsageError(f"no plugin provides the command {name!r} any more", hint="see 'iii plugins list'")
        return declared.load()

    def _listed(self, ctx: Any) -> dict[str, str]:
        from iii_core.cli.listing import plugin_commands

        return plugin_commands(self._state(ctx))

    def _declared(self, ctx: Any) -> Mapping[str, Command]:
        from iii_core.records import Command

        return self._state(ctx).plugins.collect(Command)

    def _state(self, ctx: Any) -> State:
        """The state, with the option that matters here; its callback runs only after commands are looked up."""
        state = state_of(ctx)
        state.use_plugins = state.use_plugins and not ctx.params.get("no_plugins", False)
        return state


app = typer.Typer(
    cls=RootGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from iii_core import __version__
        from iii_core.cli.output import data

        data(f"{__version__}\n")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def iii(
    context: typer.Context,
    config: Annotated[
        str | None, typer.Option("-c", "--config", metavar="FILE", help="Project file (default: config.yaml).")
    ] = None,
    use_default_config: Annotated[
        bool, typer.Option("--use-default-config", help="Run the engine with the usual workers, without a file.")
    ] = False,
    no_plugins: Annotated[
        bool, typer.Option("--no-plugins", is_eager=True, help="Leave installed plugins alone.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of unexpected errors.")] = False,
    _version: Annotated[
        bool, typer.Option("-v", "--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
    _no_update_check: Annotated[bool, typer.Option("--no-update-check", hidden=True)] = False,
) -> None:
    """Run the engine of this project, or one of the commands below.

    Without a command the engine runs in the foreground until Ctrl-C, with all workers of config.yaml.
    """
    state = context.ensure_object(State)
    state.config, state.debug, state.use_plugins = config, debug, state.use_plugins and not no_plugins
    if context.invoked_subcommand is None:
        from iii_core.cli.engine import run_engine

        raise typer.Exit(run_engine(state, use_default_config=use_default_config))
