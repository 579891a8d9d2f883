"""Fixtures that every test below this folder shares."""

import signal

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["iiitools.sampling"]

# A run that is started in the background of a script begins with SIGINT ignored, and so would every program it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
# One under nohup ignores SIGHUP, and goes on doing so; what is caught here is not ignored in the programs it starts.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")  # how fast examples are made and tried says nothing on a busy machine


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The code under test is written for trio alone."""
    return "trio"
