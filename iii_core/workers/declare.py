"""From config.yaml to `WorkerSpec`s: which workers the project wants iii to run. Pure but for the environment given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from iii_core.errors import ConfigError, IIIError, PluginMissing, UnknownKey
from iii_core.project.env import flatten_config
from iii_core.project.expand import expand
from iii_core.project.lock import Lock, locked_source
from iii_core.sandbox.port import Limits
from iii_core.workers.spec import AUTO_BACKEND, WorkerSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iii_core.project.config import ProjectConfig, WorkerEntry

SANDBOX_KEYS: Final = ("backend", "cpus", "memory", "pids")


def managed_specs(config: ProjectConfig, environ: Mapping[str, str], lock: Lock | None = None) -> dict[str, WorkerSpec]:
    """The managed workers by name, in the file's order; each is what the lock pins it to, if it does.

    An entry that cannot be used still has a spec, with its ``problem``: it fails when started, and others work on.
    """
    pins = lock or Lock()
    return {entry.name: _spec(entry, config.sandbox, environ, pins) for entry in config.workers if entry.managed}


def _spec(entry: WorkerEntry, project_sandbox: Mapping[str, Any], environ: Mapping[str, str], lock: Lock) -> WorkerSpec:
    source = entry.image or entry.worker_path or ""
    try:
        owner = f"worker {entry.name!r}"
        # Untyped: these become environment variables, whose exact text matters ("007" stays "007").
        config = expand(dict(entry.config or {}), environ, owner=owner, typed=False)
        env = {**flatten_config(config), **expand(dict(entry.env), environ, owner=owner, typed=False)}
        own, shared = (_sandbox(block, environ, owner) for block in (entry.sandbox, project_sandbox))
        return WorkerSpec(
            name=entry.name,
            source=locked_source(lock, entry.name, expand(source, environ, owner=owner, typed=False)),
            env=env,
            limits=Limits(
                cpus=_first(own["cpus"], entry.resources.cpus, shared["cpus"]),
                memory_mib=_first(own["memory"], entry.resources.memory_mib, shared["memory"]),
                pids=_first(own["pids"], shared["pids"]),
            ),
            backend=_first(own["backend"], shared["backend"], AUTO_BACKEND),
            problem=None if entry.image else _local_needs_plugin(entry),
        )
    except IIIError as error:
        return WorkerSpec(name=entry.name, source=source, problem=error)


def _local_needs_plugin(entry: WorkerEntry) -> PluginMissing:
    return PluginMissing(
        f"worker {entry.name!r} runs from the folder {entry.worker_path}, and no installed plugin runs folders",
        hint="build an image of it and name that under 'image:'",
    )


def _sandbox(block: Mapping[str, Any], environ: Mapping[str, str], owner: str) -> dict[str, Any]:
    """The ``sandbox:`` block with every key present (None where not given); unknown or impossible ones are errors."""
    from iii_core.project.quantities import parse_cpus, parse_memory_mib

    unknown = [key for key in block if key not in SANDBOX_KEYS]
    if unknown:
        raise UnknownKey(f"{owner}: unknown key {unknown[0]!r} in sandbox", hint=f"known: {', '.join(SANDBOX_KEYS)}")
    given: dict[str, Any] = {**dict.fromkeys(SANDBOX_KEYS), **expand(dict(block), environ, owner=owner)}
    for key, parse in (("cpus", parse_cpus), ("memory", parse_memory_mib)):
        try:
            given[key] = None if given[key] is None else parse(given[key])
        except ValueError as error:
            raise ConfigError(f"{owner}: {key!r} in sandbox: {error}") from None
    if given["pids"] is not None and (type(given["pids"]) is not int or given["pids"] < 2):
        raise ConfigError(f"{owner}: 'pids' in sandbox must be a whole number of at least 2")
    if given["backend"] is not None and not isinstance(given["backend"], str):
        raise ConfigError(f"{owner}: 'backend' in sandbox must be a name", hint="such as bubblewrap, or auto")
    return given


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
