"""The work tree as data: its distributions and its files. Tests that police the layout read it through this module."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CATEGORIES = ("plugins", "registries", "sandbox_backends")
NOT_SOURCES = frozenset({"build", "dist", "node_modules", "__pycache__", "venv"})


@dataclass(frozen=True)
class Distribution:
    """One distribution of the workspace.

    Attributes:
        folder: where its pyproject.toml is.
    """

    folder: Path

    @cached_property
    def pyproject(self) -> dict[str, Any]:
        """Its pyproject.toml, parsed."""
        return tomllib.loads((self.folder / "pyproject.toml").read_text())

    @property
    def project(self) -> dict[str, Any]:
        """The table ``[project]``."""
        table: dict[str, Any] = self.pyproject["project"]
        return table

    @property
    def name(self) -> str:
        """Such as ``iii-plugin-websocket``."""
        return str(self.project["name"])

    @property
    def package(self) -> str:
        """The one package it ships, such as ``iii_plugin_websocket``."""
        return self.name.replace("-", "_")


def distributions() -> list[Distribution]:
    """The core first, then the members of the workspace by path."""
    members = sorted(path.parent for category in CATEGORIES for path in ROOT.glob(f"{category}/*/pyproject.toml"))
    return [Distribution(ROOT), *map(Distribution, members)]


def source_files(*suffixes: str, below: Path = ROOT) -> Iterator[Path]:
    """Files below a folder with one of the suffixes (``.py``), but nothing hidden, built or installed."""
    for folder, subfolders, names in os.walk(below):
        subfolders[:] = sorted(name for name in subfolders if name not in NOT_SOURCES and not name.startswith("."))
        for name in sorted(names):
            if name.endswith(suffixes):
                yield Path(folder, name)


def test_modules() -> list[Path]:
    """All test modules, the core's and the plugins'."""
    return [path for path in source_files(".py") if path.name.startswith("test_") and "tests" in path.parts]
