"""Waiting for what other programs do, where there is nothing but looking."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

PATIENCE: Final = 60.0
"""Seconds after which what is waited for does not come: many times what it takes on a slow and busy machine."""
INTERVAL: Final = 0.05


def wait_until(
    condition: Callable[[], T], *, within: float = PATIENCE, told: Callable[[], object] = lambda: "it did not come"
) -> T:
    """Look again and again until ``condition`` gives something true, and give that.

    Raises:
        AssertionError: not ``within`` that many seconds; with what ``told`` says.
    """
    deadline = time.monotonic() + within
    while not (found := condition()):
        assert time.monotonic() < deadline, told()
        time.sleep(INTERVAL)
    return found
