"""A nursery for services whose background tasks never raise on their own account."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import cast

import trio


@asynccontextmanager
async def open_service_nursery() -> AsyncGenerator[trio.Nursery]:
    """A nursery that is cancelled when its body ends, and lets the body's own exception out as it is.

    A plain nursery wraps it into a group, so that ``except LinkClosed`` around the service would never match. Where
    several exceptions happened at once they stay a group.
    """
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        lone = _only_leaf(group)
        if lone is None:
            raise
        context = lone.__context__
        try:
            raise lone
        finally:
            lone.__context__ = context  # not the group: that would show everything twice


def _only_leaf(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    leaves: list[BaseException] = list(group.exceptions)
    if len(leaves) != 1:
        return None
    leaf = leaves[0]
    return _only_leaf(cast("BaseExceptionGroup[BaseException]", leaf)) if isinstance(leaf, BaseExceptionGroup) else leaf
