"""How an embedding program watches the workers of an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iii_core.engine.core import CoreWorker
    from iii_core.engine.endpoint import Endpoint, WorkerStatus
    from iii_core.engine.router import Router


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """A worker at one moment. ``functions`` are the ids it provides; ``sandbox`` is where its connection came from."""

    id: str
    name: str | None
    runtime: str | None
    version: str | None
    pid: int | None
    ip_address: str | None
    sandbox: str | None
    isolation: str | None
    status: WorkerStatus
    in_process: bool
    connected_at_ms: int
    functions: tuple[str, ...]


class WorkerChanges:
    """Snapshots of the workers; changes between two of them are coalesced, none is missed. Holds nothing to close."""

    def __init__(self, core: CoreWorker) -> None:
        self._core = core
        self._seen = -1

    def __aiter__(self) -> WorkerChanges:
        return self

    async def __anext__(self) -> tuple[WorkerInfo, ...]:
        self._seen = await self._core.changed(self._seen)
        return snapshot(self._core.router)


def snapshot(router: Router) -> tuple[WorkerInfo, ...]:
    """The workers now, the engine's internal ones left out, in order of connection."""
    return tuple(_info(worker) for worker in router.workers.values() if not worker.record.internal)


def _info(worker: Endpoint) -> WorkerInfo:
    record = worker.record
    return WorkerInfo(
        id=record.id,
        name=record.name,
        runtime=record.runtime,
        version=record.version,
        pid=record.pid,
        ip_address=record.ip_address,
        sandbox=record.sandbox,
        isolation=record.isolation,
        status=worker.status,
        in_process=worker.trusted,
        connected_at_ms=record.connected_at_ms,
        functions=tuple(sorted(worker.functions.values())),
    )
