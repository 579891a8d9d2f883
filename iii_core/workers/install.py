"""Adding workers to a project and removing them: what works with and without a running engine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import trio

from iii_core.errors import (
    IIIError,
    PluginMissing,
    WorkerAlreadyExists,
    WorkerNotInstalled,
    redact,
)
from iii_core.project.config import load_config, parse_config
from iii_core.project.edit import Edited, edit_config, put_worker, remove_worker
from iii_core.project.env import config_from_image_env
from iii_core.project.expand import escape, expand
from iii_core.project.lock import Lock, load_lock, with_image, without_worker
from iii_core.project.names import check_name
from iii_core.project.read import parse_document, read_document
from iii_core.suggestions import did_you_mean
from iii_core.workers.saving import SnapshotKeeper
from iii_core.workers.snapshots import SNAPSHOTS_FOLDER, SnapshotStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from iii_core.images.port import Image, ProgressSink
    from iii_core.project.config import WorkerEntry
    from iii_core.project.locate import Project
    from iii_core.workers.image_service import ImageService

WRITABLE_FOLDER: Final = "writable"
DROP_LIMIT: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What `add_worker` did. ``status`` follows ``worker::add`` of spec worker-cli §9.6.

    ``config`` is what happened to the entry in config.yaml, ``lock_changed`` whether iii.lock is another one now, and
    ``replaces`` the other source that the worker of this name came from until now. ``snapshot_dropped``: it had a
    snapshot, which was of what it was before.
    """

    name: str
    image: Image
    config: str
    lock_changed: bool
    replaces: str | None
    snapshot_dropped: bool = False

    @property
    def status(self) -> Literal["installed", "already_current", "replaced"]:
        """New, as it was, or another one."""
        if self.config == "added":
            return "installed"
        return "already_current" if self.config == "unchanged" and not self.lock_changed else "replaced"

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
            "config": self.config,
            "lock_changed": self.lock_changed,
            "replaces": self.replaces,
            "snapshot_dropped": self.snapshot_dropped,
        }


async def add_worker(
    project: Project,
    images: ImageService,
    source: str,
    *,
    force: bool,
    reset_config: bool,
    progress: ProgressSink,
    check: Callable[[WorkerEntry], Awaitable[None]],
    drop_snapshot: Callable[[str], Awaitable[bool]],
) -> Installed:
    """Fetch what ``source`` names, declare it in config.yaml and pin it in iii.lock; starts nothing.

    The image's ``ENV`` becomes the entry's ``config:`` (seed rule) and its resource hints ``resources:``; what the user
    has written there already wins, unless ``reset_config`` drops it. ``force`` asks the registry again; with it
    ``source`` may also be the name of an image worker of config.yaml, which then comes from where it came from.
    ``check`` is asked whether the entry, as it will be, can be run here, and raises if not. ``drop_snapshot`` deletes
    that of a worker, where one of this name becomes another; it says whether there was one.
    The files are written last and at once, so a failure or cancellation leaves the project as it was.

    Raises:
        ImageError: and its kinds.
        ConfigError: config.yaml or iii.lock is not valid or cannot be written.
        PluginMissing: no registry accepts the source.
        WorkerAlreadyExists: ``source`` is a worker's name, without ``force``; or the name is that of no image worker.
    """
    known = await trio.to_thread.run_sync(_declared, project, source)
    _refuse_kind(known)
    if known is None:
        _refuse_path(source)
    elif not force:
        raise WorkerAlreadyExists(
            f"worker {source!r} is in config.yaml already",
            hint=f"'iii worker reinstall {source}' fetches it again, 'iii worker status {source}' shows it",
            details={"name": source},
        )
    wanted = _recorded(project, known) if known else source
    image = await _fetch(project, images, wanted, known, refresh=force, progress=progress)
    name = known.name if known else check_name(image.name)
    entry = _entry(name, image)
    if known and "$" in (known.image or ""):
        entry["image"] = known.image  # it depends on the environment, and shall go on doing so
    locked = wanted if known and entry["image"] == known.image else image.reference
    before = await trio.to_thread.run_sync(_declared, project, name)
    _refuse_kind(before)

    def edit(text: str) -> Edited:
        return put_worker(_without(text, name) if reset_config else text, entry)

    def pin(lock: Lock) -> Lock:
        return with_image(lock, name, locked, image.pin, image.hints.version if image.hints else None)

    await check(await trio.to_thread.run_sync(_edited_entry, project, edit, name))
    edited = await trio.to_thread.run_sync(partial(edit_config, project, edit, pin=pin))
    outdated = False
    if edited.action != "unchanged" or edited.lock_changed:
        with trio.move_on_after(DROP_LIMIT, shield=True):  # what is written is written: it must not start from that
            outdated = await drop_snapshot(name)
    return Installed(
        name=name,
        image=image,
        config=edited.action,
        lock_changed=edited.lock_changed,
        replaces=before.image if before and before.image != entry["image"] else None,
        snapshot_dropped=outdated,
    )


async def remove_from_project(project: Project, name: str) -> bool:
    """Take a worker out of config.yaml and iii.lock; true where it was in the lock. Downloaded artifacts stay (seed 0).

    Raises `WorkerNotInstalled`, and what `edit_config` raises.
    """
    check_name(name)

    def edit(text: str) -> Edited:
        return remove_worker(text, name)

    def unpin(lock: Lock) -> Lock:
        return without_worker(lock, name)

    return (await trio.to_thread.run_sync(partial(edit_config, project, edit, pin=unpin))).lock_changed


def folders_of(state_dir: Path, name: str) -> tuple[Path, Path]:
    """Where a worker's writable layers are, and its snapshot."""
    return state_dir / WRITABLE_FOLDER / check_name(name), state_dir / SNAPSHOTS_FOLDER / check_name(name)


async def _fetch(
    project: Project,
    images: ImageService,
    source: str,
    known: WorkerEntry | None,
    *,
    refresh: bool,
    progress: ProgressSink,
) -> Image:
    try:
        return await images.fetch(source, refresh=refresh, progress=progress)
    except IIIError as error:
        redact(error, source, known.image if known and known.image else source)
        if known is not None or not refresh or not isinstance(error, PluginMissing):
            raise
        unknown = error
    unknown.hint = await trio.to_thread.run_sync(_meant, project, source) or unknown.hint
    raise unknown


async def drop_snapshot_of(project: Project, name: str) -> bool:
    """Delete a worker's snapshot while no engine runs; whether there was one.

    Raises:
        ConfigIoError: it cannot be deleted.
    """
    store = SnapshotStore(project.state_dir / SNAPSHOTS_FOLDER / check_name(name))
    return await SnapshotKeeper(name, store).drop()


def _declared(project: Project, name: str) -> WorkerEntry | None:
    """The entry of that name. Reads both files, so that one that cannot be edited is found out before a fetch."""
    load_lock(project)
    return load_config(project).find(name) if project.config_path.exists() else None


def _meant(project: Project, name: str) -> str | None:
    """The question which worker was meant by the name of none."""
    path = project.config_path
    return did_you_mean(name, [entry.name for entry in load_config(project).workers]) if path.exists() else None


def _edited_entry(project: Project, edit: Callable[[str], Edited], name: str) -> WorkerEntry:
    """The entry as it would be after an edit."""
    path = project.config_path
    text = edit(read_document(path).text if path.exists() else "").text
    entry = parse_config(parse_document(text, name=path.name)).find(name)
    assert entry is not None
    return entry


def _recorded(project: Project, entry: WorkerEntry) -> str:
    """Where a worker of config.yaml came from."""
    return str(expand(entry.image, project.environ, owner=f"worker {entry.name!r}", typed=False))


def _refuse_kind(entry: WorkerEntry | None) -> None:
    if entry is not None and entry.image is None:
        what = f"runs from the folder {entry.worker_path}" if entry.worker_path else "doesn't run from an image"
        raise WorkerAlreadyExists(
            f"worker {entry.name!r} of config.yaml {what}",
            hint=f"to have an image of that name, 'iii worker remove {entry.name}' first",
            details={"name": entry.name},
        )


def _refuse_path(source: str) -> None:
    """What is written as a path is none of a registry's business (spec worker-cli §1.1)."""
    if not source.startswith((".", "/", "~")):
        return
    if Path(source).expanduser().is_file():
        raise PluginMissing(
            f"{source!r} is a file, and it takes more than a path to say what is in it",
            hint=f"'docker-archive:{source}' for what 'docker save' made, or 'oci-archive:{source}'",
        )
    raise PluginMissing(
        f"cannot add the folder {source!r}: no installed plugin runs workers from folders",
        hint=f"build an image of it and add that; if it holds an OCI image layout, write 'oci:{source}'",
    )


def _entry(name: str, image: Image) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "image": escape(image.reference)}
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
    try:
        return remove_worker(text, name).text
    except WorkerNotInstalled:
        return text
