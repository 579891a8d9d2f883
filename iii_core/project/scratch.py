"""Folders for a trial that must not disturb a running engine."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from iii_core.errors import ConfigIoError
from iii_core.project.locate import runtime_dir
from iii_core.records import OpenContext

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from iii_core.project.locate import Project

DISK: Final = "/var/tmp"  # noqa: S108 - on a disk, which /tmp often is not, and overlays need; the folder is made private


@contextmanager
def scratch_context(project: Project) -> Generator[OpenContext]:
    """What to open a provider with for a trial: folders of its own, gone with the block.

    ``home`` is the real one, as kernels and images are in it. Raises `ConfigIoError`, `EngineError`.
    """
    with _folder(runtime_dir(project), "t-") as runtime:
        yield OpenContext(
            state_dir=runtime / "state", runtime_dir=runtime / "run", home=project.home, environ=project.environ
        )


@contextmanager
def scratch_folder(environ: Mapping[str, str]) -> Generator[Path]:
    """A folder of our own on a disk (in ``TMPDIR``, else /var/tmp), gone with the block. Raises `ConfigIoError`."""
    with _folder(Path(environ.get("TMPDIR") or DISK), "iii-trial-") as folder:
        yield folder


@contextmanager
def _folder(place: Path, prefix: str) -> Generator[Path]:
    try:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    except OSError as error:
        raise ConfigIoError(f"cannot create a folder in {place}: {error.strerror}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
