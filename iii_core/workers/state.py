"""What is known of a managed worker while the engine runs: its phase, and the facts behind ``list`` and ``status``."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iii_core.images.port import Image
    from iii_core.records import SandboxBackend
    from iii_core.sandbox.port import SandboxState
    from iii_core.workers.plan import WorkerPlan
    from iii_core.workers.services import OpenBackend


class Phase(enum.StrEnum):
    """Where a managed worker is. ``list`` shows the value.

    ``running`` means ready: the engine sees the worker. ``starting`` has a process the engine does not see (yet),
    ``saving`` one that is about to stand still for a moment.
    """

    STOPPED = "stopped"
    PREPARING = "preparing"
    BOOTING = "booting"
    STARTING = "starting"
    RUNNING = "running"
    SAVING = "saving"
    STOPPING = "stopping"
    RESTARTING = "restarting"
    FAILED = "failed"

    @property
    def alive(self) -> bool:
        """Whether something of the worker exists that ``stop`` would end."""
        return self not in (Phase.STOPPED, Phase.FAILED)

    @property
    def settled(self) -> bool:
        """Whether waiting longer cannot change it: ready, stopped or failed."""
        return self in (Phase.STOPPED, Phase.FAILED, Phase.RUNNING)


@dataclass(slots=True)
class WorkerState:
    """Facts of one run, filled in as they become known. ``warm``: it was started from a snapshot."""

    image: Image | None = None
    backend: SandboxBackend | None = None
    sandbox: SandboxState | None = None
    process_pid: int | None = None
    notes: tuple[str, ...] = ()
    warm: bool = False

    def describe(self, *, image: Image, backend: OpenBackend, plan: WorkerPlan) -> None:
        """Note what the run is made of."""
        self.image, self.backend, self.notes = image, backend.record, (*backend.notes, *plan.notes)

    @property
    def pid(self) -> int | None:
        """The sandbox's process on this machine."""
        return self.sandbox.pid if self.sandbox else None

    def as_json(self) -> dict[str, Any]:
        """The part of ``worker.status`` that comes from the run."""
        sandbox = self.sandbox
        return {
            "image": {"reference": self.image.reference, "digest": self.image.digest} if self.image else None,
            "backend": self.backend.name if self.backend else None,
            "isolation": self.backend.isolation.value if self.backend else None,
            "pid": self.pid,
            "warm": self.warm,
            "unenforced": list(sandbox.unenforced) if sandbox else [],
            "notes": [*self.notes, *(sandbox.notes if sandbox else ())],
        }


@dataclass(slots=True)
class History:
    """What happened over all runs since the engine started."""

    restarts: int = 0
    last_exit: str | None = None
    last_error: BaseException | None = field(default=None)
