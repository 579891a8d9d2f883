"""README.md shows the releases that the tests run and what came of it; who changes one must run the suite again."""

from __future__ import annotations

import re

from iiitools.sdks import SDKS
from iiitools.worktree import ROOT

CASES = ROOT / "tests" / "integration" / "sdk"


def table() -> list[list[str]]:
    """The cells of each row between the markers, the header first."""
    readme = (ROOT / "README.md").read_text()
    found = re.search(r"<!-- sdk-matrix -->\n(.*?)<!-- /sdk-matrix -->", readme, re.DOTALL)
    assert found, "README.md has no <!-- sdk-matrix --> block"
    rows = [line for line in found[1].splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_releases_are_those_that_the_tests_run() -> None:
    assert table()[0] == ["case", *(sdk.label.replace("-", " ") for sdk in SDKS)]


def test_every_case_is_shown_and_none_that_is_gone() -> None:
    cases = {
        f"{path.stem.removeprefix('test_sdk_')}: {name.replace('_', ' ')}"
        for path in CASES.glob("test_sdk_*.py")
        for name, parameters in re.findall(r"^(?:async )?def test_(\w+)\((.*?)\)", path.read_text(), re.M | re.DOTALL)
        if re.search(r"\b(Sdk|Client|TypeScript)\b", parameters)
    }
    assert {row[0] for row in table()[1:]} == cases


def test_nothing_is_shown_that_failed() -> None:
    cells = {cell for row in table()[1:] for cell in row[1:]}
    assert all(re.fullmatch(r"|yes|n/a \(\d+\)", cell) for cell in cells), cells
