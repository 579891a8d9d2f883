"""Every hook is documented with its exact signature, and used in a test."""

from __future__ import annotations

import ast
import re

import pytest

from iiitools import worktree
from iiitools.worktree import ROOT, source_files

GUIDE = ROOT / "docs" / "plugin-authors.md"
PARTS = ("When:", "Called by:", "Yield:", "None means:", "Example:")


def hooks() -> list[ast.FunctionDef]:
    module = ast.parse((ROOT / "iii_core" / "hookspecs.py").read_text())
    return [node for node in module.body if isinstance(node, ast.FunctionDef) and is_decorated(node, "hookspec")]


def is_decorated(function: ast.FunctionDef | ast.AsyncFunctionDef, mark: str) -> bool:
    return any(mark in ast.unparse(decorator) for decorator in function.decorator_list)


def signature(hook: ast.FunctionDef) -> str:
    assert hook.returns is not None
    return f"def {hook.name}({ast.unparse(hook.args)}) -> {ast.unparse(hook.returns)}"


def test_there_are_hooks() -> None:
    assert {"iii_transports", "iii_sandbox_backends"} <= {hook.name for hook in hooks()}


@pytest.mark.parametrize("hook", hooks(), ids=lambda hook: hook.name)
def test_docstring_says_when_who_and_what(hook: ast.FunctionDef) -> None:
    docstring = ast.get_docstring(hook) or ""
    missing = [part for part in PARTS if part not in docstring]
    assert not missing


@pytest.mark.parametrize("hook", hooks(), ids=lambda hook: hook.name)
def test_guide_has_a_section_with_the_exact_signature(hook: ast.FunctionDef) -> None:
    section = re.search(rf"^### `{hook.name}`$(.*?)(?=^##|\Z)", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert section, f"{GUIDE.name} has no section '### `{hook.name}`'"
    assert f"{signature(hook)}:" in section[1].splitlines()


def test_guide_names_no_hook_that_does_not_exist() -> None:
    named = set(re.findall(r"^### `(iii_\w+)`$", GUIDE.read_text(), re.MULTILINE))
    assert named == {hook.name for hook in hooks()}


@pytest.mark.parametrize("hook", hooks(), ids=lambda hook: hook.name)
def test_some_test_uses_it(hook: ast.FunctionDef) -> None:
    word = re.compile(rf"\b{hook.name}\b")
    users = [path for path in worktree.test_modules() if "docs" not in path.parts and word.search(path.read_text())]
    assert users, f"no test uses {hook.name}"


def test_no_hook_implementation_is_async() -> None:
    """pluggy would hand out the coroutine and never await it."""
    offenders = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in source_files(".py")
        if "tests" not in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.AsyncFunctionDef) and is_decorated(node, "hookimpl")
    ]
    assert not offenders
