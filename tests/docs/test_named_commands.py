"""Every ``iii`` command that a message, a hint, a help text or a document names can be typed."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from iii_core.cli.root import app
from iii_core.cli.state import State
from iiitools.worktree import ROOT

CODE = ("iii_core", "plugins", "registries", "sandbox_backends")
EXAMPLES = {("hello",), ("bye",), ("sandbox", "setup")}
"""Commands of plugins that exist in documents alone."""
NAMED = re.compile(r"(?:['\"`]|^ *(?:\$ )?)iii ([a-z][a-z-]*(?: [a-z][a-z-]*)*)", re.MULTILINE)
PROSE = {"is", "for", "as", "itself", "has", "does", "to", "runs", "sets", "and", "hooks", "said"}


def sources() -> list[Path]:
    found = [path for folder in CODE for path in (ROOT / folder).rglob("*.py")]
    return [path for path in found if not {"tests", "build", ".venv"} & set(path.relative_to(ROOT).parts)]


def documents() -> list[Path]:
    return [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "changelog.d").glob("*.md")]


def texts(path: Path) -> list[str]:
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return [content]
    nodes = ast.walk(ast.parse(content))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def named(path: Path) -> set[tuple[str, ...]]:
    phrases = (tuple(phrase.split()) for text in texts(path) for phrase in NAMED.findall(text))
    return {words for words in phrases if words[0] not in PROSE}


@cache
def missing(words: tuple[str, ...]) -> str | None:
    """The first word that is neither a command nor behind one; None if all is well."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("iii", [], resilient_parsing=True, obj=State())
    for word in words:
        if not hasattr(command, "get_command"):
            return None  # arguments
        found = command.get_command(context, word)
        if found is None:
            return word
        lazy = getattr(found, "_lazy", None)
        command = typer.main.get_command(lazy.load()) if lazy is not None else found
    return None


@pytest.mark.parametrize("path", [*sources(), *documents()], ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_exist(path: Path) -> None:
    wrong = {words: missing(words) for words in named(path) if not any(words[: len(one)] == one for one in EXAMPLES)}
    assert {words for words, word in wrong.items() if word is not None} == set()


def test_what_does_not_exist_is_found() -> None:
    everything = {words[:2] for path in sources() for words in named(path)}
    assert {("worker", "remove"), ("plugins", "list"), ("worker", "logs")} <= everything
    assert missing(("worker", "clear")) == "clear"
    assert missing(("worker", "logs", "some-name")) is None
    assert missing(("nothing",)) == "nothing"
