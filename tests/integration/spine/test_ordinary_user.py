"""The whole engine as user 65534, for whom `/etc/subuid` has no line: sandboxes have one user id only."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import IIIProject
    from iiitools.registry import Registry

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else"),
]
REPOSITORY = Path(__file__).parents[3]
ORDINARY = REPOSITORY / "sandbox_backends" / "bubblewrap" / "tests" / "ordinary.py"
USER = 65534
NAME = "math-worker"


@pytest.fixture
def ordinary(new_project: Callable[[Path, Path], IIIProject]) -> Iterator[IIIProject]:
    """A project whose engine and commands are that user's."""
    folder = Path(tempfile.mkdtemp(prefix="iii-ordinary-"))  # pytest's own folders are private to root
    folder.chmod(0o755)
    for name in ("project", "home", "scratch"):
        (folder / name).mkdir(mode=0o700)
    project = new_project(folder / "project", folder / "home")
    wish = {
        "uid": USER,
        "scratch": str(folder / "scratch"),
        "files": {"/etc/subuid": "", "/etc/subgid": ""},
        "show": sorted({sys.base_prefix, sys.prefix, *(path for path in sys.path if Path(path).is_dir())}),
    }
    project.wrapper = ["unshare", "--mount", sys.executable, str(ORDINARY), json.dumps(wish)]
    project.environ |= {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "III_CONFIG_PATH": str(project.config),
    }
    yield project
    project.close()
    shutil.rmtree(folder)


def test_an_image_of_another_user_runs_as_the_only_one(ordinary: IIIProject, registry: Registry) -> None:
    ordinary.config.write_text(
        f"workers:\n  - name: iii-worker-manager\n    config: {{port: {ordinary.port}}}\n"
        f"  - name: {NAME}\n    image: {registry.address}/math-worker:1.0\n    sandbox: {{user: 1234}}\n"
    )
    for path in (ordinary.folder, ordinary.config, ordinary.home, ordinary.runtime):
        os.chown(path, USER, USER)
    ordinary.start()
    facts = ordinary.wait_running(NAME)
    assert "user 1234:1234 is not there: it runs as the only user of its sandbox, 0:0" in facts["notes"]
    ordinary.wait_callable()
    ordinary.assert_callable()
    assert ordinary.ok("worker", "exec", NAME, "--", "id", "-u") == "0\n"
