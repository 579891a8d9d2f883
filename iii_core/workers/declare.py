"""From config.yaml to `WorkerSpec`s: which workers the project wants iii to run. Pure but for the environment given."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from iii_core.errors import ConfigError, IIIError, PluginMissing, redact
from iii_core.project.env import flatten_config
from iii_core.project.expand import expand
from iii_core.project.lock import Lock, locked_source
from iii_core.project.sandbox_settings import project_sandbox, worker_sandbox
from iii_core.sandbox.port import Limits
from iii_core.workers.plan import first_limits
from iii_core.workers.spec import AUTO_BACKEND, WorkerSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iii_core.project.config import ProjectConfig, WorkerEntry
    from iii_core.project.sandbox_settings import Places, SandboxSettings


def managed_specs(
    config: ProjectConfig, environ: Mapping[str, str], lock: Lock | None = None, *, places: Places
) -> dict[str, WorkerSpec]:
    """The managed workers by name, in the file's order; each is what the lock pins it to, if it does.

    An entry that cannot be used still has a spec, with its ``problem``: it fails when started, and others work on.

    Raises `ConfigError`: the project's own ``sandbox:`` is wrong.
    """
    shared = project_sandbox(config.sandbox, environ, places)
    read = _Declared(shared, environ, lock or Lock(), places)
    return {entry.name: read.spec(entry) for entry in config.workers if entry.managed}


class _Declared:
    def __init__(self, shared: SandboxSettings, environ: Mapping[str, str], lock: Lock, places: Places) -> None:
        self._shared = shared
        self._environ = environ
        self._lock = lock
        self._places = places

    def spec(self, entry: WorkerEntry) -> WorkerSpec:
        source = entry.image or entry.worker_path or ""
        try:
            return self._spec(entry, source)
        except IIIError as error:
            return WorkerSpec(name=entry.name, source=source, problem=error)

    def _spec(self, entry: WorkerEntry, source: str) -> WorkerSpec:
        owner = f"worker {entry.name!r}"
        env = environment_of(entry, self._environ)
        expanded = expand(source, self._environ, owner=owner, typed=False)
        own = worker_sandbox(entry.sandbox, self._environ, self._places)
        try:
            locked = locked_source(self._lock, entry.name, expanded)
        except ConfigError as error:
            redact(error, expanded, source)
            raise
        return replace(
            sandbox_part(entry, own, self._shared),
            source=locked,
            written=source,
            expanded=expanded,
            env=env,
            problem=None if entry.image else _local_needs_plugin(entry),
        )


def environment_of(entry: WorkerEntry, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment variables that an entry declares. Raises `UnsetVariable`.

    Untyped, as their exact text matters: "007" stays "007".
    """
    owner = f"worker {entry.name!r}"
    config = expand(dict(entry.config or {}), environ, owner=owner, typed=False)
    return {**flatten_config(config), **expand(dict(entry.env), environ, owner=owner, typed=False)}


def sandbox_part(entry: WorkerEntry, own: SandboxSettings, shared: SandboxSettings) -> WorkerSpec:
    """What an entry says about its sandbox, by precedence; without what runs in it."""
    network = own.network or shared.network
    return WorkerSpec(
        name=entry.name,
        source="",
        limits=first_limits(
            own.limits,
            Limits(cpus=entry.resources.cpus, memory_mib=entry.resources.memory_mib),
            Limits(disk_mib=shared.limits.disk_mib),  # images have no say in this one
        ),
        fallback=shared.limits,
        backend=own.backend or shared.backend or AUTO_BACKEND,
        egress=network.egress if network else None,
        mounts=own.mounts if own.mounts is not None else shared.mounts or (),
        ports=own.ports or (),
        user=own.user or shared.user,
        declared_at=f"{entry.sandbox.file}:{own.line or shared.line or entry.line}",
    )


def _local_needs_plugin(entry: WorkerEntry) -> PluginMissing:
    return PluginMissing(
        f"worker {entry.name!r} runs from the folder {entry.worker_path}, and no installed plugin runs folders",
        hint="build an image of it and name that under 'image:'",
    )
