"""What config.yaml, if there is one here, sets for sandbox backends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iii_core.cli.state import State


def backend_settings(state: State) -> Mapping[str, Mapping[str, Any]]:
    """By backend, checked; none without a project. Raises `ConfigError`, `PluginCollision`."""
    from iii_core.project.config import load_config
    from iii_core.project.provider_settings import provider_settings
    from iii_core.records import SandboxBackend

    project = state.project
    if not project.config_path.exists():
        return {}
    block, records = load_config(project).sandbox, state.plugins.collect(SandboxBackend)
    return provider_settings(block, records, project.environ, what="sandbox backend", path=("backends",))
