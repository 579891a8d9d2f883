"""``iii``: the options of the program, its commands, and the engine in the foreground where no command is given."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from iii_core.cli.commands import ROOT
from iii_core.cli.extensible import ExtensibleGroup
from iii_core.cli.state import State

EXAMPLES: Final = """\b
Examples:
  iii                                          run the engine of this folder
  iii worker add ghcr.io/my-org/my-worker:1.0  add a worker, and start it
  iii trigger my-worker::hello name=you        call a function of a worker
"""
_MEANT: Final = {"help": "iii --help", "version": "iii --version", "run": "iii", "serve": "iii", "up": "iii"}


class RootGroup(ExtensibleGroup):
    """The commands of the core, then those of plugins."""

    lazy = ROOT

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The list in the help, after what is wrong with it."""
        from iii_core.cli.output import warn

        for warning in self._state(ctx).listing.warnings:
            warn(warning, "see 'iii plugins list'")
        super().format_commands(ctx, formatter)

    def suggest(self, ctx: Any, word: str) -> list[str]:
        """As a group does; also what people know from elsewhere, and commands of ``iii worker``."""
        from iii_core.cli.worker.app import WorkerGroup

        if word in _MEANT:
            return [_MEANT[word]]
        inner = [f"iii worker {word}"] if word in WorkerGroup.lazy else []
        return inner or super().suggest(ctx, word)

    def _state(self, ctx: Any) -> State:
        """The state, with the option that matters here; its callback runs only after commands are looked up."""
        state = super()._state(ctx)
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


@app.callback(invoke_without_command=True, epilog=EXAMPLES)
def iii(
    context: typer.Context,
    config: Annotated[
        str | None, typer.Option("-c", "--config", metavar="FILE", help="The project's file, instead of config.yaml.")
    ] = None,
    use_default_config: Annotated[
        bool, typer.Option("--use-default-config", help="Run the engine without a file.")
    ] = False,
    no_plugins: Annotated[
        bool, typer.Option("--no-plugins", is_eager=True, help="Do as if no plugins were installed.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of unexpected errors.")] = False,
    _version: Annotated[
        bool,
        typer.Option("-v", "--version", is_eager=True, callback=_print_version, help="Print the version and exit."),
    ] = False,
    _no_update_check: Annotated[bool, typer.Option("--no-update-check", hidden=True)] = False,
) -> None:
    """Run the engine of the project in this folder, or one of the commands below.

    A project is a folder with a config.yaml. Without a command, the engine runs in the foreground with all workers of
    config.yaml until Ctrl-C; commands talk to it from another terminal.
    """
    state = context.ensure_object(State)
    state.config, state.debug, state.use_plugins = config, debug, state.use_plugins and not no_plugins
    if context.invoked_subcommand is None:
        from iii_core.cli.engine import run_engine

        raise typer.Exit(run_engine(state, use_default_config=use_default_config))
