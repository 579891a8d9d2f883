"""Adding workers to a project and removing them: what works with and without a running engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import trio

from iii_core.errors import PluginMissing
from iii_core.project.config import load_config
from iii_core.project.edit import Edited, edit_config, put_worker, remove_worker
from iii_core.project.env import config_from_image_env
from iii_core.project.names import check_name
from iii_core.workers.writable import drop_writable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iii_core.images.port import Image, ProgressSink
    from iii_core.project.locate import Project
    from iii_core.workers.image_service import ImageService

WRITABLE_FOLDER = "writable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What `add_worker` did. ``status`` follows ``worker::add`` of spec worker-cli §9.6."""

    name: str
    status: Literal["installed", "already_current", "replaced"]
    image: Image

    def as_json(self) -> dict[str, Any]:
        """As the control socket and ``--json`` carry it."""
        hints = self.image.hints
        return {
            "name": self.name,
            "status": self.status,
            "image": self.image.reference,
            "digest": self.image.digest,
            "size": self.image.size,
            "version": hints.version if hints else None,
            "description": hints.description if hints else None,
            "manifest": hints is not None,
        }


async def add_worker(
    project: Project,
    images: ImageService,
    source: str,
    *,
    force: bool,
    reset_config: bool,
    progress: ProgressSink,
) -> Installed:
    """Fetch what ``source`` names and declare it in config.yaml; starts nothing.

    The image's ``ENV`` becomes the entry's ``config:`` (seed rule) and its resource hints ``resources:``; what the user
    has written there already wins, unless ``reset_config`` drops it. ``force`` asks the registry again.
    The config is written last and at once, so a failure or cancellation leaves the project as it was.

    Raises:
        ImageError: and its kinds.
        ConfigError: config.yaml is not valid or cannot be written.
        PluginMissing: no registry accepts the source.
    """
    if source.startswith((".", "/", "~")):
        raise PluginMissing(
            f"cannot add the folder {source!r}: no installed plugin runs workers from folders",
            hint="build an image of it and add that; archives are named 'oci-archive:FILE' or 'docker-archive:FILE'",
        )
    await trio.to_thread.run_sync(_check_config, project)
    image = await images.fetch(source, refresh=force, progress=progress)
    name = check_name(image.name)

    def edit(text: str) -> Edited:
        if reset_config:
            text = _without(text, name)
        return put_worker(text, _entry(name, image))

    edited = await trio.to_thread.run_sync(edit_config, project, edit)
    status: Literal["installed", "already_current", "replaced"] = (
        "installed" if edited.action == "added" else "already_current" if edited.action == "unchanged" else "replaced"
    )
    return Installed(name=name, status=status, image=image)


async def remove_from_config(project: Project, name: str) -> None:
    """Take a worker out of config.yaml. Raises `WorkerNotInstalled`; downloaded artifacts stay (seed 0)."""
    check_name(name)

    def edit(text: str) -> Edited:
        return remove_worker(text, name)

    await trio.to_thread.run_sync(edit_config, project, edit)


async def drop_layers(project: Project, name: str) -> None:
    """Delete a removed worker's writable layers."""
    await trio.to_thread.run_sync(drop_writable, project.state_dir / WRITABLE_FOLDER / check_name(name))


def _check_config(project: Project) -> None:
    """A file that cannot be edited is found out before anything is fetched for it. Raises `ConfigError`."""
    if project.config_path.exists():
        load_config(project)


def _entry(name: str, image: Image) -> Mapping[str, Any]:
    entry: dict[str, Any] = {"name": name, "image": image.reference}
    config = config_from_image_env(image.config.env)
    if config:
        entry["config"] = config
    hints = image.hints
    resources = {"cpus": hints.cpus, "memory": hints.memory_mib} if hints else {}
    wanted = {key: value for key, value in resources.items() if value is not None}
    if wanted:
        entry["resources"] = wanted
    return entry


def _without(text: str, name: str) -> str:
    from iii_core.errors import WorkerNotInstalled

    try:
        return remove_worker(text, name).text
    except WorkerNotInstalled:
        return text
