"""Work that is brought to its end although whoever asked for it has left."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from iii_core.errors import EngineError, leading_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_log = logging.getLogger(__name__)


async def finish_in(nursery: trio.Nursery, work: Callable[[], Awaitable[None]]) -> None:
    """Do ``work`` in ``nursery`` and wait for it; cancelling ends the wait alone. It begins whatever happens.

    Raises what ``work`` raises; what it raises when nobody waits any more is logged.

    Raises:
        EngineError: the nursery was cancelled before the work was done.
    """
    ended = trio.Event()
    waiting = True
    done = False
    failed: Exception | None = None

    async def run() -> None:
        nonlocal done, failed
        try:
            await work()
            done = True
        except Exception as error:
            failed = error
            if not waiting:
                _log.warning("a command that was interrupted could not be finished: %s", leading_error(error))
        finally:
            ended.set()

    nursery.start_soon(run)
    try:
        await ended.wait()
    finally:
        waiting = False
    if failed is not None:
        raise failed
    if not done:
        raise EngineError("the engine ends", hint="what is left to do is done when it runs again")
