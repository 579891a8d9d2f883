"""What a provider is opened with, for a project."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from iii_core.errors import ConfigIoError
from iii_core.project.locate import make_private, make_state_dir, runtime_dir
from iii_core.project.sandbox_settings import Places
from iii_core.records import OpenContext

if TYPE_CHECKING:
    from iii_core.project.locate import Project


def provider_context(project: Project, provider: str) -> OpenContext:
    """What to open the provider of that name with; makes its runtime folder. Raises `ConfigIoError`, `EngineError`."""
    state = make_state_dir(project) / "state"
    runtime = runtime_dir(project) / provider
    try:
        make_private(state)
        make_private(runtime)
    except OSError as error:
        raise ConfigIoError(f"cannot create {error.filename}: {error.strerror}") from error
    return OpenContext(state_dir=state / provider, runtime_dir=runtime, home=project.home, environ=project.environ)


def places_of(project: Project) -> Places:
    """How the sources of mounts are read, and what no sandbox of this project may be shown."""
    home = project.environ.get("HOME")
    return Places(
        project=project.root,
        user_home=Path(home) if home else None,
        private=tuple(
            place.resolve()
            for place in (project.config_path, project.lock_path, project.state_dir, project.home, runtime_dir(project))
        ),
    )
