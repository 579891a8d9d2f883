"""For people who are in the wrong folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from iii_core.cli.state import State


def wrong_folder(state: State) -> str | None:
    """What to tell somebody whose project has no configuration file: that, and where the nearest one above is.

    None where there is nothing to tell: the file exists, or nobody named it and no project is above.
    """
    project = state.project
    if project.config_path.exists():
        return None
    above = enclosing_project(project.root)
    if above is not None:
        return f"there is no {project.config_path}; try 'iii -c {above} …', which is the project around this folder"
    named = state.config is not None or project.environ.get("III_CONFIG_PATH")
    return f"there is no {project.config_path}" if named else None


def enclosing_project(folder: Path) -> Path | None:
    """The config.yaml of the nearest folder above ``folder`` in which iii has been at work."""
    for parent in folder.parents:
        config = parent / "config.yaml"
        if (parent / ".iii").is_dir() and config.is_file():
            return config
    return None
