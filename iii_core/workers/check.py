"""Whether what config.yaml asks of a worker's sandbox can be had here, asked before anything is changed for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iii_core.errors import PluginMissing, UnsupportedOperation
from iii_core.project.context import places_of
from iii_core.project.sandbox_settings import project_sandbox, worker_sandbox
from iii_core.workers.declare import sandbox_part
from iii_core.workers.spec import AUTO_BACKEND

if TYPE_CHECKING:
    from iii_core.project.config import ProjectConfig, WorkerEntry
    from iii_core.project.locate import Project
    from iii_core.workers.services import Sandboxes
    from iii_core.workers.spec import WorkerSpec


async def check_entry(entry: WorkerEntry, config: ProjectConfig, project: Project, sandboxes: Sandboxes) -> None:
    """Check an entry that is about to be written. Raises `ConfigError`, and as `check_sandbox`."""
    places = places_of(project)
    own = worker_sandbox(entry.sandbox, project.environ, places)
    spec = sandbox_part(entry, own, project_sandbox(config.sandbox, project.environ, places))
    await check_sandbox(spec, sandboxes)


async def check_sandbox(spec: WorkerSpec, sandboxes: Sandboxes) -> None:
    """Raise `UnsupportedOperation` or `PluginMissing`, with the place in config.yaml, for what cannot be had.

    May raise what keeps sandboxes from working at all (`BackendUnavailable`, `SandboxHostDied`).
    """
    needs_more = spec.egress is not None or bool(spec.mounts) or spec.limits.disk_mib is not None
    if spec.backend == AUTO_BACKEND and not needs_more:
        return
    try:
        await sandboxes.check(spec.backend, spec)
    except (UnsupportedOperation, PluginMissing) as error:
        raise type(error)(
            f"{spec.declared_at}: worker {spec.name!r}: {error.message}", hint=error.hint, details=error.details
        ) from error
