"""Every error has a code of its own, which docs/errors.md explains."""

from __future__ import annotations

import inspect
import re
from collections import Counter

import pytest

from iii_core import errors
from iiitools.worktree import ROOT

DOCUMENT = ROOT / "docs" / "errors.md"


def error_classes() -> list[type[errors.IIIError]]:
    found = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, errors.IIIError)]
    return [value for value in found if value is not errors.InvocationError]  # its code is the wire's


def documented() -> dict[str, str]:
    """Code → class name, as the table of docs/errors.md has them."""
    rows = re.findall(r"^\| `(W\d{3})` \| `(\w+)` \| \S.* \| \S.* \|$", DOCUMENT.read_text(), re.MULTILINE)
    return dict(rows)


def tree_of_docstring() -> dict[str, str]:
    """Code → class name, as the tree at the top of iii_core.errors has them."""
    rows = re.findall(r"(\w+) +(W\d{3})\b", errors.__doc__ or "")
    return {code: name for name, code in rows}


def test_codes_are_unique() -> None:
    codes = Counter(error.default_code for error in error_classes())
    assert not [code for code, count in codes.items() if count > 1]


def test_each_class_sets_its_own_code() -> None:
    assert not [error.__name__ for error in error_classes() if "default_code" not in vars(error)]


def test_tree_at_the_top_is_complete() -> None:
    assert tree_of_docstring() == {error.default_code: error.__name__ for error in error_classes()}


@pytest.mark.parametrize("error", error_classes(), ids=lambda error: error.__name__)
def test_code_is_documented(error: type[errors.IIIError]) -> None:
    assert documented().get(error.default_code) == error.__name__


def test_no_code_is_documented_that_does_not_exist() -> None:
    assert set(documented()) == {error.default_code for error in error_classes()}
