"""Fixtures that every test below this folder shares."""

import signal

import pytest

pytest_plugins = ["iiitools.sampling"]

# A run that is started in the background of a script begins with SIGINT ignored, and so would every program it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The code under test is written for trio alone."""
    return "trio"
