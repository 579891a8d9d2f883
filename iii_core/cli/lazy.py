"""Command groups whose commands are imported only when they are run: ``iii --help`` needs none of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

from iii_core.cli.quick import Quick
from iii_core.suggestions import close_names

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True)
class Lazy:
    """A command to come: what help says about it, and how to get the ``typer.Typer`` that implements it."""

    help: str
    load: Callable[[], typer.Typer]
    hidden: bool = False


def from_module(module: str, attribute: str = "app") -> Callable[[], typer.Typer]:
    """A loader of the ``app`` of a module."""

    def load() -> typer.Typer:
        from importlib import import_module

        app: typer.Typer = getattr(import_module(module), attribute)
        return app

    return load


class LazyCommand(TyperCommand):
    """Stands for a command in listings, and becomes it when it is to run or to explain itself."""

    def __init__(self, name: str, lazy: Lazy) -> None:
        super().__init__(name, help=lazy.help, hidden=lazy.hidden, rich_markup_mode=None)
        self._lazy = lazy

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """The context of the real command, whose methods are called from here on."""
        command = typer.main.get_command(self._lazy.load())
        command.name = self.name
        return command.make_context(*args, **kwargs)


class LazyGroup(Quick, TyperGroup):
    """A group that knows its commands by name only. Subclasses set `lazy`."""

    lazy: ClassVar[Mapping[str, Lazy]] = {}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the first word names; an unknown word is an error that says what may have been meant."""
        word = args[0]
        if not (word.startswith("-") or ctx.resilient_parsing) and self.get_command(ctx, word) is None:
            meant = [f"'{command}'" for command in self.suggest(ctx, word)]
            ctx.fail(f"No such command {word!r}." + (f" Did you mean {' or '.join(meant)}?" if meant else ""))
        return super().resolve_command(ctx, args)

    def suggest(self, ctx: Any, word: str) -> list[str]:
        """Command lines that may have been meant by an unknown ``word``."""
        names = [name for name in self.list_commands(ctx) if name not in self.lazy or not self.lazy[name].hidden]
        return [f"{ctx.command_path} {name}" for name in close_names(word, names)]

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order of declaration, which is how people meet them."""
        return [*self.lazy, *self.commands]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command or its stand-in; None if there is none of that name."""
        found = self.lazy.get(cmd_name)
        return LazyCommand(cmd_name, found) if found is not None else super().get_command(ctx, cmd_name)
