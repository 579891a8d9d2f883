"""Fixtures that every test below this folder shares."""

import pytest

pytest_plugins = ["iiitools.sampling"]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The code under test is written for trio alone."""
    return "trio"
