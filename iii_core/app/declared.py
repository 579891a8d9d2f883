"""All that the files of a project declare, read and checked as a whole before any of it is put in force."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from iii_core.app.settings import engine_config
from iii_core.project.config import load_config
from iii_core.project.context import places_of
from iii_core.project.lock import load_lock
from iii_core.project.provider_settings import provider_settings
from iii_core.records import InProcessWorker, RegistryResolver, SandboxBackend, Transport
from iii_core.workers.declare import managed_specs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iii_core.engine.config import EngineConfig
    from iii_core.host import PluginHost
    from iii_core.project.config import ProjectConfig
    from iii_core.project.locate import Project
    from iii_core.project.lock import Lock
    from iii_core.workers.spec import WorkerSpec

    Settings = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Providers:
    """What the plugins bring that config.yaml may have settings for."""

    in_process: Mapping[str, InProcessWorker]
    transports: Mapping[str, Transport]
    registries: Mapping[str, RegistryResolver]
    backends: Mapping[str, SandboxBackend]

    @classmethod
    def of(cls, plugins: PluginHost) -> Providers:
        """Those of a plugin host."""
        return cls(
            plugins.collect(InProcessWorker),
            plugins.collect(Transport),
            plugins.collect(RegistryResolver),
            plugins.collect(SandboxBackend),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What a project declares; ``backends`` and ``registries`` are settings by provider, used from the next start."""

    config: ProjectConfig
    lock: Lock
    engine: EngineConfig = field(repr=False)
    workers: Mapping[str, WorkerSpec] = field(repr=False)
    backends: Settings = field(repr=False)
    registries: Settings = field(repr=False)


def load_declared(project: Project, providers: Providers) -> Declared:
    """Read config.yaml and iii.lock. Raises `ConfigError` and its kinds."""
    config, lock = load_config(project), load_lock(project)
    environ = project.environ
    return Declared(
        config=config,
        lock=lock,
        engine=engine_config(config, environ, providers.in_process, project.root, providers.transports),
        workers=managed_specs(config, environ, lock, places=places_of(project)),
        backends=provider_settings(
            config.sandbox, providers.backends, environ, what="sandbox backend", path=("backends",)
        ),
        registries=provider_settings(config.registries, providers.registries, environ, what="registry"),
    )
