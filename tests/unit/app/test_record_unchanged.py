"""Where the engine is, is written down once: on a full disk it could not be, and nothing has changed."""

from __future__ import annotations

from pathlib import Path

from iii_core.project.locate import Project, write_record


def test_what_has_not_changed_is_not_written(tmp_path: Path) -> None:
    project = Project(config_path=tmp_path / "config.yaml", home=tmp_path / "home", environ={})
    for port, same in ((1, False), (1, True), (2, False), (2, True)):
        before = project.record_path.stat().st_ino if project.record_path.exists() else None
        assert write_record(project, control=tmp_path / "c", port=port).port == port
        assert (project.record_path.stat().st_ino == before) is same
