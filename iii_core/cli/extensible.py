"""Groups that plugins add commands to: `iii` itself, and those in `iii_core.cli.commands.GROUPS`.

The name of a plugin's `Command` says where it belongs: ``hello`` is ``iii hello``, ``sandbox.setup`` is ``iii sandbox
setup``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from typer import Typer

from iii_core.cli.lazy import Lazy, LazyCommand, LazyGroup
from iii_core.cli.state import State, state_of
from iii_core.errors import IIIError, PluginError, UsageError

if TYPE_CHECKING:
    from iii_core.records import Command


class ExtensibleGroup(LazyGroup):
    """The commands of the core, then those of plugins. Subclasses set `lazy` and `prefix`."""

    prefix: ClassVar[str] = ""
    """What the names of plugins' commands for this group begin with: empty, or ``<group>.``."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All commands, for help and completion."""
        added = (self._within(name) for name in self._state(ctx).listing.commands)
        return [*super().list_commands(ctx), *(name for name in added if name is not None)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command of the core never waits for plugins to be found, and one of a plugin only when it is to run."""
        found = super().get_command(ctx, cmd_name)
        if found is not None or "." in cmd_name:
            return found
        help_text = self._state(ctx).listing.commands.get(self.prefix + cmd_name)
        if help_text is None and self._declared(ctx, cmd_name) is None:
            return None
        return LazyCommand(cmd_name, Lazy(help_text or "", lambda: self._load(ctx, cmd_name)))

    def _within(self, name: str) -> str | None:
        """What this group calls a plugin's command; None if it is another group's."""
        short = name.removeprefix(self.prefix)
        return short if name.startswith(self.prefix) and "." not in short else None

    def _load(self, ctx: Any, name: str) -> Any:
        declared = self._declared(ctx, name)
        if declared is None:
            raise UsageError(f"no plugin provides the command {name!r} any more", hint="see 'iii plugins list'")
        try:
            loaded: object = declared.load()
        except (IIIError, KeyboardInterrupt):
            raise
        except BaseException as error:  # a plugin's own fault, sys.exit() too
            raise _broken(name, f"raised {type(error).__name__}") from error
        if not isinstance(loaded, Typer):
            raise _broken(name, f"gave {type(loaded).__name__}, not a typer.Typer")
        return loaded

    def _declared(self, ctx: Any, name: str) -> Command | None:
        from iii_core.records import Command

        return self._state(ctx).plugins.find(Command, self.prefix + name)

    def _state(self, ctx: Any) -> State:
        return state_of(ctx)


def _broken(name: str, how: str) -> PluginError:
    return PluginError(
        f"the plugin's command {name!r} cannot run: its load() {how}",
        hint="see 'iii plugins list' for who provides it, and update or uninstall that; 'iii --debug …' shows where",
    )
