"""``cp``: files in and out of a worker's sandbox, as an archive that is relayed to a control client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from iii_core.workers.exec import relay

if TYPE_CHECKING:
    from iii_core.link.mux import MuxStream
    from iii_core.sandbox.agent import Agent
    from iii_core.workers.plan import WorkerPlan


class CopyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments of ``worker.copy``; ``path`` is inside, absolute or below ``/workspace``."""

    name: str
    path: str
    direction: Literal["in", "out"]


async def copy_of_worker(request: CopyRequest, agent: Agent, plan: WorkerPlan, stream: MuxStream) -> dict[str, Any]:
    """Copy as the worker's user, and relay until it ends.

    The archive (`iii_core.sandbox.archive`) is channel 0 of the client's stream or channel 1 of the engine's,
    complaints are channel 2. The client's leaving ends it. Returns ``{"exit_code": n}``, 1 if something was not copied.

    Raises:
        UnsupportedOperation: the sandbox's agent is too old.
        LinkClosed: the worker's sandbox ended meanwhile, or the client left.
    """
    start = agent.copy_in if request.direction == "in" else agent.copy_out
    return await relay(stream, await start(request.path, uid=plan.uid, gid=plan.gid))
