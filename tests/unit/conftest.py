from __future__ import annotations

from importlib.metadata import entry_points

import pytest

from iii_core.host import ENTRY_POINT_GROUP


@pytest.fixture(scope="session")
def transport() -> None:
    """For tests in which something connects: the core alone (``tox -e core-only``) has nothing to connect with."""
    if not entry_points(group=ENTRY_POINT_GROUP):
        pytest.skip("no plugin is installed")
