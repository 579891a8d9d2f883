"""What the oldest Python that this project runs on (3.11.2, Debian 12's) would do otherwise than newer ones."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("iii_core", "plugins", "registries", "sandbox_backends")


def raised_in_except_star(source: str) -> Iterator[int]:
    """The lines that raise something of their own within an ``except*``: before 3.11.4 it arrives in a group."""
    for block in ast.walk(ast.parse(source)):
        if isinstance(block, ast.TryStar):
            for handler in block.handlers:
                for node in ast.walk(handler):
                    if isinstance(node, ast.Raise) and node.exc is not None:
                        yield node.lineno


def test_the_search_finds() -> None:
    source = "try: pass\nexcept* OSError:\n  if x:\n    raise ValueError\n  raise\nexcept* KeyError: pass\nraise E"
    assert list(raised_in_except_star(source)) == [4]


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_is_raised_within_except_star(folder: str) -> None:
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    assert [f"{file}:{line}" for file in files for line in raised_in_except_star(file.read_text("utf-8"))] == []
