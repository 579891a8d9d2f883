"""A pytest plugin: `make test` runs a seeded sample of the tests marked ``long``; `make test-full` runs them all.

The sample takes one in `ONE_IN` of each file's long tests, and at least one, so that no long suite rots unseen. Tests
marked ``full`` are not in it.
"""

from __future__ import annotations

import random
from collections import defaultdict

import pytest

ONE_IN = 5


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("long tests")
    group.addoption("--long-sample", action="store_true", help="run a seeded sample of the tests marked 'long'")
    group.addoption("--seed", type=int, default=1, help="seed of that sample (default: 1)")


def pytest_report_header(config: pytest.Config) -> str | None:
    if not config.getoption("--long-sample"):
        return None
    return f"long tests: a sample of one in {ONE_IN}, --seed={config.getoption('--seed')}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long-sample"):
        return
    long_tests: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    dropped: list[pytest.Item] = []
    for item in items:
        if item.get_closest_marker("full"):
            dropped.append(item)
        elif item.get_closest_marker("long"):
            long_tests[str(item.path)].append(item)
    chosen = random.Random(config.getoption("--seed"))
    for path in sorted(long_tests):
        tests = long_tests[path]
        kept = set(chosen.sample(range(len(tests)), max(1, len(tests) // ONE_IN)))
        dropped += [test for index, test in enumerate(tests) if index not in kept]
    if dropped:
        gone = set(map(id, dropped))
        items[:] = [item for item in items if id(item) not in gone]
        config.hook.pytest_deselected(items=dropped)
