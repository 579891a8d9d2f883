"""What tests of workers on a clock that jumps need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import trio

T = TypeVar("T")


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be done in a thread is done here and now: a clock would jump over the time that a thread takes."""

    async def run_here(act: Callable[..., T], *args: Any, **_: Any) -> T:
        await trio.lowlevel.checkpoint()
        return act(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_here)
