"""The workers of a project as rows: from the engine if one runs, else from config.yaml."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iii_core.errors import EngineNotRunning
from iii_core.project.locate import read_record

if TYPE_CHECKING:
    from iii_core.project.locate import Project


def worker_rows(project: Project) -> list[dict[str, Any]]:
    """One row per declared worker, in file order; without an engine all are stopped.

    Raises `ConfigError` for a config.yaml that cannot be read; no file is no workers.
    """
    return all_rows(project)[0]


def all_rows(project: Project) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of `worker_rows`, and one per worker that is connected to the engine and not run by it."""
    if read_record(project) is not None:
        from iii_core.control.client import request

        try:
            answer: dict[str, list[dict[str, Any]]] = request(project, "worker.list")
            return answer["workers"], answer.get("external", [])
        except EngineNotRunning:
            pass  # it ended this very moment
    return _declared_rows(project), []


def find_row(project: Project, name: str) -> dict[str, Any]:
    """The row of one worker. Raises `WorkerNotInstalled`."""
    rows = {row["name"]: row for row in worker_rows(project)}
    if name in rows:
        return rows[name]
    from iii_core.project.edit import not_in_config

    raise not_in_config(name, rows)


def require_engine(project: Project, name: str) -> None:
    """Raises `EngineNotRunning` where nothing can be done to a worker, and `WorkerNotInstalled` before that."""
    if read_record(project) is None:
        from iii_core.control.client import not_running

        find_row(project, name)
        raise not_running()


def is_running(row: dict[str, Any]) -> bool:
    """Whether there is something to stop."""
    return row["status"] not in ("stopped", "failed") and row["type"] != "engine"


def _declared_rows(project: Project) -> list[dict[str, Any]]:
    if not project.config_path.exists():
        return []
    from iii_core.project.config import load_config

    versions = _locked_versions(project)
    return [
        {
            "name": entry.name,
            "type": entry.kind,
            "version": versions.get(entry.name),
            "pid": None,
            "status": "stopped",
            "isolation": None,
            "backend": None,
            "note": None,
        }
        for entry in load_config(project).workers
    ]


def _locked_versions(project: Project) -> dict[str, str]:
    if not project.lock_path.exists():
        return {}
    from iii_core.project.lock import load_lock

    return {name: entry.version for name, entry in load_lock(project).workers.items()}
