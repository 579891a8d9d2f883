"""Tasks that an object needs until the very end of its closing."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from iii_core.link.nursery import open_service_nursery

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


@asynccontextmanager
async def open_background() -> AsyncGenerator[trio.Nursery]:
    """A nursery whose tasks outlive the cancellation of its body.

    A plain nursery cancels its tasks together with the body, so a body that tidies up in ``finally`` (shielded,
    bounded) finds nobody there to take its answers. These tasks are cancelled when the body has left. One that fails
    still cancels the body. The body's own exception comes out ungrouped.
    """
    async with open_service_nursery() as outer:
        background: trio.Nursery = await outer.start(_run)
        try:
            yield background
        finally:
            background.cancel_scope.cancel()


async def _run(*, task_status: trio.TaskStatus[trio.Nursery]) -> None:
    with trio.CancelScope(shield=True):
        async with trio.open_nursery() as nursery:
            task_status.started(nursery)
            await trio.sleep_forever()
