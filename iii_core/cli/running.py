"""The one place where commands, which are plain functions, run trio."""

from __future__ import annotations

import signal
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import trio
import typer

from iii_core.errors import IIIError, leading_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

T = TypeVar("T")
ENDING: Final = (signal.SIGTERM, signal.SIGHUP)


def run_async(function: Callable[[], Awaitable[T]]) -> T:
    """Run ``function`` to its end. Of a group of errors the leading `IIIError` is raised, for callers to catch.

    SIGTERM and SIGHUP cancel it, so that it cleans up as after Ctrl-C; then ``typer.Exit`` with 128 + N is raised.
    """
    try:
        return trio.run(partial(_until_told_to_end, function))
    except BaseExceptionGroup as group:
        leader = leading_error(group)
        if isinstance(leader, IIIError):
            raise leader from group
        raise


async def _until_told_to_end(function: Callable[[], Awaitable[T]]) -> T:
    heeded = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]  # as nohup(1) asks
    if not heeded:
        return await function()
    with trio.open_signal_receiver(*heeded) as signals:
        told: list[int] = []
        results: list[T] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when_told, signals, told, nursery.cancel_scope)
            results.append(await function())
            nursery.cancel_scope.cancel()
        if not results:
            raise typer.Exit(128 + told[0])
        return results[0]


async def _cancel_when_told(signals: AsyncIterator[int], told: list[int], scope: trio.CancelScope) -> None:
    async for number in signals:
        told.append(number)
        scope.cancel()
