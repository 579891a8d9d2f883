"""Whether what config.yaml asks of a worker's sandbox can be had here, asked before anything is changed for it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import trio

from iii_core.errors import PluginMissing, UnsetVariable, UnsupportedOperation
from iii_core.project.block import suggest
from iii_core.project.context import places_of
from iii_core.project.sandbox_settings import project_sandbox, worker_sandbox
from iii_core.sandbox.port import check_supported
from iii_core.workers.declare import environment_of, sandbox_part
from iii_core.workers.spec import AUTO_BACKEND
from iii_core.workers.validity import check_spec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iii_core.project.config import ProjectConfig, WorkerEntry
    from iii_core.project.locate import Project
    from iii_core.records import SandboxBackend
    from iii_core.sandbox.port import SandboxNeeds
    from iii_core.workers.spec import WorkerSpec


class Checks(Protocol):
    """Who knows what backends can do: `iii_core.workers.services.Sandboxes`, or `UnopenedBackends`."""

    async def check(self, name: str, needs: SandboxNeeds) -> None:
        """Raise `UnsupportedOperation` if that backend lacks what is needed, `PluginMissing` if there is none."""
        ...


class UnopenedBackends:
    """What can be said of backends without trying one: for a project whose engine does not run."""

    def __init__(self, records: Mapping[str, SandboxBackend]) -> None:
        self._records = records

    async def check(self, name: str, needs: SandboxNeeds) -> None:
        """See `Checks.check`; ``auto`` may turn out to be any."""
        await trio.lowlevel.checkpoint()
        if name != AUTO_BACKEND:
            require(named(self._records, name), needs, self._records)
        elif self._records and not able(self._records, needs):
            require(max(self._records.values(), key=lambda record: record.strength), needs, self._records)


def named(records: Mapping[str, SandboxBackend], name: str) -> SandboxBackend:
    """The backend of that name. Raises `PluginMissing`."""
    if name not in records:
        raise PluginMissing(
            f"there is no sandbox backend {name!r}",
            hint=suggest(name, sorted(records)).replace("known keys", "installed backends"),
            details={"backend": name},
        )
    return records[name]


def require(record: SandboxBackend, needs: SandboxNeeds, records: Mapping[str, SandboxBackend]) -> None:
    """Raise `UnsupportedOperation` for what the backend lacks; the hint names those that have it."""
    try:
        check_supported(needs, record.capabilities, record.name, record.lacks)
    except UnsupportedOperation as error:
        others = able(records, needs)
        if others:
            error.hint = f"{error.hint}; {', '.join(others)} {'has' if len(others) == 1 else 'have'} it"
        raise


def able(records: Mapping[str, SandboxBackend], needs: SandboxNeeds) -> list[str]:
    """The names of the backends that have what is needed."""
    return sorted(name for name, record in records.items() if _supports(record, needs))


def _supports(record: SandboxBackend, needs: SandboxNeeds) -> bool:
    try:
        check_supported(needs, record.capabilities, record.name, record.lacks)
    except UnsupportedOperation:
        return False
    return True


async def check_entry(
    entry: WorkerEntry, config: ProjectConfig, project: Project, sandboxes: Checks, *, engine_port: int
) -> None:
    """Check an entry that is about to be written. Raises `ConfigError`, and as `check_sandbox`.

    A variable that is not set here may be where the engine runs, and is no reason against it.
    """
    places = places_of(project)
    own = worker_sandbox(entry.sandbox, project.environ, places)
    spec = sandbox_part(entry, own, project_sandbox(config.sandbox, project.environ, places))
    with suppress(UnsetVariable):
        spec = replace(spec, env=environment_of(entry, project.environ))
    check_spec(spec, engine_port)
    await check_sandbox(spec, sandboxes)


async def check_sandbox(spec: WorkerSpec, sandboxes: Checks) -> None:
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
