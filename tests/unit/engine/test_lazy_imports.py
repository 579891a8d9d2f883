"""Importing the package costs next to nothing, and every public name is really there."""

from __future__ import annotations

import subprocess
import sys

import pytest

import iii_core
import iii_core.engine


@pytest.mark.parametrize("module", ["iii_core", "iii_core.engine"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'trio', 'pluggy', 'msgspec', 'asyncio'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", [iii_core, iii_core.engine], ids=lambda module: module.__name__)
def test_every_lazy_name_resolves(module: object) -> None:
    names = vars(module)["_HOME"]
    assert all(getattr(module, name) is not None for name in names)
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(module, "no_such_" + "name")
