"""Writing data as YAML text that is spliced into a user's file."""

from __future__ import annotations

from typing import Any, Final

import yaml

from iii_core.project.read import resolve_plain

_WIDTH: Final = 1 << 30
_TEXT_TAG: Final = "tag:yaml.org,2002:str"


def render_block(data: Any, column: int) -> list[str]:
    """The lines of ``data`` in block style, indented by ``column``, without line ends."""
    return [" " * column + line for line in _dump(data, flow=False).split("\n")]


def render_flow(data: Any) -> str:
    """``data`` in flow style, on one line."""
    return _dump(data, flow=True)


class _Dumper(yaml.SafeDumper):
    """Indents lists below their key, and writes no aliases."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Text that reads as text under YAML 1.1 and the 1.2 core schema alike, and never spreads over lines."""
    style = '"' if not text.isprintable() else None if isinstance(resolve_plain(text), str) else "'"
    return dumper.represent_scalar(_TEXT_TAG, text, style=style)  # pyright: ignore[reportUnknownMemberType]


_Dumper.add_representer(str, _represent_text)


def _dump(data: Any, *, flow: bool) -> str:
    text: str = yaml.dump(
        data, Dumper=_Dumper, default_flow_style=flow, sort_keys=False, allow_unicode=True, width=_WIDTH
    )
    return text.removesuffix("\n").removesuffix("\n...")
