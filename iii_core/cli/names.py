"""Worker names on the command line."""

from __future__ import annotations

import typer

from iii_core.cli.state import state_of


def complete_worker(context: typer.Context, incomplete: str) -> list[str]:
    """The project's worker names, for completion; whatever goes wrong there are none."""
    from iii_core.errors import IIIError
    from iii_core.project.config import load_config
    from iii_core.project.locate import locate_project

    try:
        root = context.find_root()
        project = locate_project(root.params.get("config") or state_of(context).config)
        names = [entry.name for entry in load_config(project).workers]
    except IIIError:
        return []
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]
