"""The config.yaml of a new project."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from iii_core.project.files import write_atomic
from iii_core.project.guard import project_lock

if TYPE_CHECKING:
    from iii_core.project.locate import Project

NEW_CONFIG: Final = """\
# Workers of this project. Add one with `iii worker add`, for example
#   iii worker add ghcr.io/my-org/my-worker:latest
# and they start with `iii`.
workers: []
"""


def create_config(project: Project) -> bool:
    """Create config.yaml with an empty list of workers; false if there is one by now. Raises `ConfigIoError`."""
    with project_lock(project):
        if project.config_path.exists():
            return False
        write_atomic(project.config_path, NEW_CONFIG.encode())
        return True
