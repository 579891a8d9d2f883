"""Folders for a trial that must not disturb a running engine."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from iii_core.errors import ConfigIoError
from iii_core.project.locate import runtime_dir
from iii_core.records import OpenContext

if TYPE_CHECKING:
    from collections.abc import Generator

    from iii_core.project.locate import Project


@contextmanager
def scratch_context(project: Project) -> Generator[OpenContext]:
    """For a trial: folders of its own, gone with the block, so that a running engine is not disturbed.

    ``home`` is the real one, as kernels and images are in it. Raises `ConfigIoError`, `EngineError`.
    """
    try:
        project.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = Path(tempfile.mkdtemp(prefix="trial-", dir=project.home))
    except OSError as error:
        raise ConfigIoError(f"cannot create a folder in {project.home}: {error.strerror}") from error
    try:
        runtime = Path(tempfile.mkdtemp(prefix="t-", dir=runtime_dir(project)))
        try:
            yield OpenContext(state_dir=state, runtime_dir=runtime, home=project.home, environ=project.environ)
        finally:
            shutil.rmtree(runtime, ignore_errors=True)
    finally:
        shutil.rmtree(state, ignore_errors=True)
