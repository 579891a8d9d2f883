"""Adding and removing workers of a project whose engine does not run."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from iii_core.cli.running import run_async
from iii_core.errors import IIIError
from iii_core.project.config import ProjectConfig, load_config, manager_port
from iii_core.project.context import provider_context
from iii_core.project.edit import not_in_config
from iii_core.project.locate import remove_runtime_dir
from iii_core.project.provider_settings import provider_settings
from iii_core.records import RegistryResolver, SandboxBackend
from iii_core.workers.check import UnopenedBackends, check_entry
from iii_core.workers.image_service import open_images
from iii_core.workers.install import add_worker, drop_snapshot_of, folders_of, remove_from_project
from iii_core.workers.writable import drop_all, set_aside

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from iii_core.cli.state import State
    from iii_core.images.port import Progress
    from iii_core.project.config import WorkerEntry
    from iii_core.project.locate import Project


def add_offline(
    state: State, source: str, *, force: bool, reset_config: bool, progress: Callable[[Mapping[str, Any]], None]
) -> dict[str, Any]:
    """Fetch ``source`` and declare it; a row as ``worker.add`` of the control socket gives it, ``offline`` set."""
    try:
        return run_async(partial(_add, state, source, force=force, reset_config=reset_config, progress=progress))
    except IIIError as error:
        return {"error": {"code": error.code, "message": error.message, "hint": error.hint}}
    finally:
        remove_runtime_dir(state.project)


def remove_offline(project: Project, name: str) -> bool:
    """Take a worker out of config.yaml and iii.lock, drop its layers and its snapshot; true where the lock held it.

    Raises `IIIError`.
    """
    if not project.config_path.exists():  # and no lock, which would leave a folder behind where there is no project
        raise not_in_config(name, ())
    return run_async(partial(_remove, project, name))


def drop_snapshot_offline(project: Project, name: str) -> bool:
    """Delete a worker's snapshot; whether there was one. Raises `IIIError`."""
    return run_async(partial(drop_snapshot_of, project, name))


async def _add(
    state: State, source: str, *, force: bool, reset_config: bool, progress: Callable[[Mapping[str, Any]], None]
) -> dict[str, Any]:
    def report(step: Progress) -> None:
        progress({"stage": step.stage, "item": step.item, "done": step.done, "total": step.total})

    project, plugins = state.project, state.plugins
    config = load_config(project) if project.config_path.exists() else ProjectConfig()
    backends = UnopenedBackends(plugins.collect(SandboxBackend))
    registries = provider_settings(
        config.registries, plugins.collect(RegistryResolver), project.environ, what="registry"
    )

    async def check(entry: WorkerEntry) -> None:
        port = manager_port(config, project.environ)
        await check_entry(entry, config, project, backends, engine_port=port)

    async with open_images(plugins, partial(provider_context, project), registries) as images:
        installed = await add_worker(
            project,
            images,
            source,
            force=force,
            reset_config=reset_config,
            progress=report,
            check=check,
            drop_snapshot=partial(drop_snapshot_of, project),
        )
    return {**installed.as_json(), "offline": True}


async def _remove(project: Project, name: str) -> bool:
    unlocked = await remove_from_project(project, name)
    removed = [path for folder in folders_of(project.state_dir, name) for path in set_aside(folder)]
    await trio.to_thread.run_sync(drop_all, removed)
    return unlocked
