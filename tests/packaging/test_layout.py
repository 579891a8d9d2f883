"""The rules of the work tree that a reviewer would else have to watch."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

import iii_core
from iiitools.worktree import ROOT, Distribution, distributions, source_files

MAX_LINES = 400
PLUGIN = re.compile(r"iii_(plugin|sandbox|registry)_\w+")
PREFIX = {"plugins": "iii-plugin-", "registries": "iii-registry-", "sandbox_backends": "iii-sandbox-"}


def name_of(distribution: Distribution) -> str:
    return distribution.name


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_core_imports_no_plugin() -> None:
    offenders = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in source_files(".py", below=ROOT / "iii_core")
        for module in imported_modules(path)
        if PLUGIN.match(module)
    ]
    assert not offenders


def test_unit_tests_of_the_core_import_no_plugin() -> None:
    """They run in an environment without any (tox -e core-only)."""
    offenders = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in source_files(".py", below=ROOT / "tests" / "unit")
        for module in imported_modules(path)
        if PLUGIN.match(module)
    ]
    assert not offenders


def test_type_checker_knows_where_packages_are() -> None:
    """Else mypy takes a package for a part of the folder it lies in."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {str(found.folder.relative_to(ROOT)) for found in distributions() if found.folder != ROOT}
    assert folders <= set(config["tool"]["mypy"]["mypy_path"])


def test_files_are_short() -> None:
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in source_files(".py", ".c", ".h")}
    assert not {str(path): length for path, length in lengths.items() if length > MAX_LINES}


def test_no_note_to_self_is_left() -> None:
    note = re.compile(r"\b(TODO|FIXME|XXX)\b")
    offenders = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in source_files(".py", ".c", ".h", ".sh", ".toml", ".md")
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if note.search(line)
    ]
    assert not offenders


def test_category_folders_are_no_packages() -> None:
    assert not [category for category in PREFIX if (ROOT / category / "__init__.py").exists()]


def test_versions_are_in_lock_step() -> None:
    assert {distribution.project["version"] for distribution in distributions()} == {iii_core.__version__}


def test_all_pins_among_ourselves_name_that_version() -> None:
    version = distributions()[0].project["version"]
    ours = {distribution.name for distribution in distributions()}
    offenders: list[str] = []
    for distribution in distributions():
        extras = distribution.project.get("optional-dependencies", {})
        for requirement in chain(distribution.project["dependencies"], *extras.values()):
            name = re.split(r"[^\w-]", requirement, maxsplit=1)[0]
            if name in ours and "[" not in requirement and requirement != f"{name}=={version}":
                offenders.append(f"{distribution.name}: {requirement}")
    assert not offenders


def test_workspace_knows_every_member() -> None:
    sources = distributions()[0].pyproject["tool"]["uv"]["sources"]
    assert sources == {distribution.name: {"workspace": True} for distribution in distributions()}


def test_tox_builds_every_member_anew() -> None:
    rebuilt = re.findall(r"--reinstall-package=(\S+)", (ROOT / "tox.ini").read_text())
    assert sorted(rebuilt) == sorted(distribution.name for distribution in distributions()[1:])


@pytest.mark.parametrize("distribution", distributions()[1:], ids=name_of)
def test_member_is_named_after_its_category_and_is_complete(distribution: Distribution) -> None:
    folder = distribution.folder
    assert distribution.name.startswith(PREFIX[folder.parent.name])
    for file in ("README.md", "LICENSE", f"{distribution.package}/__init__.py", f"{distribution.package}/py.typed"):
        assert (folder / file).is_file(), file
    for module in distribution.project["entry-points"]["iii"].values():
        assert module.partition(".")[0] == distribution.package
