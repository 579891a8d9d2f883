"""The one place where commands, which are plain functions, run trio."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import trio

from iii_core.errors import IIIError, leading_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


def run_async(function: Callable[[], Awaitable[T]]) -> T:
    """Run ``function`` to its end. Of a group of errors the leading `IIIError` is raised, for callers to catch."""
    try:
        return trio.run(function)
    except BaseExceptionGroup as group:
        leader = leading_error(group)
        if isinstance(leader, IIIError):
            raise leader from group
        raise
