"""Commands that take their text parameters as they are.

Typer sends every parameter but a given flag through pydantic, whose import alone takes longer than ``iii --help``. Text
needs no conversion, and neither does an option that is not given; anything else goes Typer's way.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperOption


class Quick:
    """Mixed into commands and groups of Typer: ``@app.command(cls=QuickCommand)``."""

    # Typer's classes, which come after this one, have the two methods; a mixin cannot say so to a type checker.
    params: list[Any]
    _quick_help: Any = None

    def get_params(self, ctx: Any) -> Any:
        """See `TyperCommand`."""
        self.params[:] = [_quick(param) for param in self.params]
        return super().get_params(ctx)  # type: ignore[misc] # pyright: ignore

    def get_help_option(self, ctx: Any) -> Any:
        """See `TyperCommand`."""
        if self._quick_help is None:
            self._quick_help = _quick(super().get_help_option(ctx))  # type: ignore[misc] # pyright: ignore
        return self._quick_help


class QuickCommand(Quick, TyperCommand):
    """A command with quick parameters."""


class QuickOption(TyperOption):
    """See the module."""

    def process_value(self, ctx: Any, value: Any) -> Any:
        """The value, as it is where that will do."""
        return _finish(self, ctx, value) if _is_ready(self, value) else super().process_value(ctx, value)


class QuickArgument(TyperArgument):
    """See the module. Help shows its metavar as it is to be typed; one that ends with ``...`` speaks for itself."""

    def get_usage_pieces(self, ctx: Any) -> list[str]:
        """Its part of the usage line."""
        shown = self._shown()
        if self.required or shown.endswith("..."):
            return [shown]
        return [f"[{shown}]" + ("..." if self.nargs == -1 else "")]

    def get_help_record(self, ctx: Any) -> tuple[str, str] | None:
        """Its line in the list of arguments."""
        return None if self.hidden else (self._shown(), self.help or "")

    def _shown(self) -> str:
        return self.metavar or str(self.name).upper()

    def process_value(self, ctx: Any, value: Any) -> Any:
        """The value, as it is where that will do."""
        return _finish(self, ctx, value) if _is_ready(self, value) else super().process_value(ctx, value)


def _is_ready(param: TyperOption | TyperArgument, value: Any) -> bool:
    if param.required and param.value_is_missing(value):
        return False  # the error is Typer's to raise
    annotation = param.type_descriptor.annotation
    if annotation is str:
        return value is None or isinstance(value, str)
    if annotation == list[str]:
        items: list[object] = list(value or ())
        return not isinstance(value, str) and all(isinstance(item, str) for item in items)
    return value is None and not (param.multiple or param.nargs == -1)


def _finish(param: TyperOption | TyperArgument, ctx: Any, value: Any) -> Any:
    if param.type_descriptor.annotation == list[str]:
        value = list(value or ())
    return value if param.callback is None else param.callback(ctx, param, value)


def _quick(param: Any) -> Any:
    """A quick parameter that is otherwise the same; what is quick already, or not Typer's, stays."""
    quick: QuickOption | QuickArgument
    if type(param) is TyperOption:
        quick = QuickOption.__new__(QuickOption)
    elif type(param) is TyperArgument:
        quick = QuickArgument.__new__(QuickArgument)
    else:
        return param
    for name, value in vars(param).items():
        setattr(quick, name, value)
    return quick
