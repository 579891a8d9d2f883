"""``iii`` without a command: make sure there is a configuration, then run the engine."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from iii_core.cli.output import is_terminal, say
from iii_core.errors import Cancelled, UsageError
from iii_core.project.locate import refuse_second_engine

if TYPE_CHECKING:
    from iii_core.cli.state import State
    from iii_core.project.locate import Project

# The library default set of the original (spec protocol §8.2), as far as plugins provide it.
DEFAULT_WORKERS: Final = ("iii-http", "iii-state", "iii-stream", "iii-queue", "iii-pubsub", "iii-cron")


def run_engine(state: State, *, use_default_config: bool) -> int:
    """Run the project's engine in the foreground; returns its exit code.

    Raises `UsageError` for contradicting options, `Cancelled` where the user wants no config.yaml, and what
    `iii_core.app.foreground.run_foreground` raises.
    """
    project = state.project
    if use_default_config:
        if state.config is not None:
            raise UsageError("--use-default-config and --config exclude each other")
        project = replace(project, default_workers=_default_workers(state))
    elif not project.config_path.exists():
        refuse_second_engine(project)  # before a file is made that it would not be for
        _create_config(project)
    from iii_core.app.foreground import run_foreground

    return run_foreground(project, state.plugins)


def _default_workers(state: State) -> tuple[str, ...]:
    from iii_core.records import InProcessWorker

    installed = state.plugins.collect(InProcessWorker)
    return tuple(name for name in DEFAULT_WORKERS if name in installed)


def _create_config(project: Project) -> None:
    """Create config.yaml; asks on a terminal (Enter means yes), and just does it elsewhere (spec protocol §8.1)."""
    from iii_core.cli.elsewhere import enclosing_project
    from iii_core.cli.prompt import confirm
    from iii_core.project.create import create_config

    path = project.config_path
    above = enclosing_project(project.root)
    around = f" (the project around this folder is {above.parent})" if above is not None else ""
    question = f"No {path.name} here{around}. Create one?"
    if is_terminal(sys.stdin) and is_terminal(sys.stderr) and not confirm(question, default=above is None):
        raise Cancelled(f"there is no {path}", hint="name another file with --config, or try --use-default-config")
    create_config(project)
    say(f"Created {path}")
