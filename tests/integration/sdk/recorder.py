"""Notes what passed with which SDK, for the table that `iiitools.sdk_table` makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

import iii_core
from iiitools import sdk_table
from iiitools.sdks import Sdk

FOLDER = Path(__file__).parent
PROPERTY = "sdk-case"


class Recorder:
    """A pytest plugin. It writes a file only if all tests of this folder (but the long ones) have run."""

    def __init__(self) -> None:
        self._results: dict[str, sdk_table.Result] = {}
        self._complete = False

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        if any(FOLDER in item.path.parents and item.get_closest_marker("long") is None for item in items):
            self._complete = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        found = {item.path for item in items if item.path.parent == FOLDER}
        wanted = set(FOLDER.glob("test_*.py"))
        self._complete = found == wanted  # a test named by its id leaves others of its file out: see sessionfinish
        for item in items:
            sdks = _sdks(item)
            if item.path.parent == FOLDER and sdks:
                item.user_properties.append((PROPERTY, (_group(item), _case(item), sdks)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        properties = dict(report.user_properties)
        if PROPERTY not in properties or (report.when != "call" and report.passed):
            return
        group, case, sdks = properties[PROPERTY]
        reason = ""
        if report.skipped and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ")
        outcome: sdk_table.Outcome = "unsupported" if report.skipped else "passed" if report.passed else "failed"
        self._results[report.nodeid] = sdk_table.Result(
            group=group, case=case, sdks=sdks, outcome=outcome, reason=reason
        )

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        whole = all("::" not in argument for argument in session.config.args)
        if self._complete and whole and self._results:
            sdk_table.save(self._results.values(), iii_core.__version__)


def _sdks(item: pytest.Item) -> tuple[str, ...]:
    """The releases that a test is about, by its parameters."""
    callspec = getattr(item, "callspec", None)
    values = callspec.params.values() if callspec else ()
    return tuple(value.label for value in values if isinstance(value, Sdk))


def _group(item: pytest.Item) -> str:
    return item.path.stem.removeprefix("test_sdk_").replace("_", " ")


def _case(item: pytest.Item) -> str:
    return item.name.partition("[")[0].removeprefix("test_").replace("_", " ")
