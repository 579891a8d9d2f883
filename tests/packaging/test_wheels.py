"""All distributions build, and their wheels hold what they should and nothing else."""

from __future__ import annotations

import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from iiitools.worktree import Distribution, distributions

pytestmark = pytest.mark.timeout(300)  # the first test pays for building all of them


def name_of(distribution: Distribution) -> str:
    return distribution.name


@pytest.mark.parametrize("distribution", distributions(), ids=name_of)
def test_wheel_holds_its_own_package_alone(distribution: Distribution, wheels: dict[str, Path]) -> None:
    with zipfile.ZipFile(wheels[distribution.name]) as wheel:
        names = wheel.namelist()
    info = f"{distribution.package}-{distribution.project['version']}.dist-info"
    assert {name.partition("/")[0] for name in names} == {distribution.package, info}
    assert f"{distribution.package}/py.typed" in names
    assert any(name.startswith(f"{info}/licenses/") for name in names)
    assert not [name for name in names if "/tests/" in name or "__pycache__" in name]


@pytest.mark.parametrize("distribution", distributions(), ids=name_of)
def test_wheel_has_all_modules_of_the_work_tree(distribution: Distribution, wheels: dict[str, Path]) -> None:
    package = distribution.folder / distribution.package
    modules = {path.relative_to(distribution.folder).as_posix() for path in package.rglob("*.py")}
    with zipfile.ZipFile(wheels[distribution.name]) as wheel:
        assert {name for name in wheel.namelist() if name.endswith(".py")} == modules


@pytest.mark.parametrize("distribution", distributions()[1:], ids=name_of)
def test_metadata_carries_the_entry_points(distribution: Distribution, wheels: dict[str, Path]) -> None:
    info = f"{distribution.package}-{distribution.project['version']}.dist-info"
    with zipfile.ZipFile(wheels[distribution.name]) as wheel:
        entry_points = wheel.read(f"{info}/entry_points.txt").decode()
        metadata = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
    assert entry_points.startswith("[iii]\n")
    assert metadata["License-Expression"] == "Apache-2.0"
    assert f"iii-core=={distribution.project['version']}" in metadata.get_all("Requires-Dist", [])


def test_nobody_ships_the_name_of_the_sdk(wheels: dict[str, Path]) -> None:
    """`import iii` belongs to the published SDK."""
    for path in wheels.values():
        with zipfile.ZipFile(path) as wheel:
            assert not [name for name in wheel.namelist() if name.startswith("iii/") or name == "iii.py"]
