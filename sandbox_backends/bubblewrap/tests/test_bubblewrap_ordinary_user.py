"""The whole conformance kit as user 65534: with one user id inside, and with a range of /etc/subuid.

A kit run is one process; it happens once for each kind, and each check has its own test here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import iii_sandbox_bubblewrap
import iii_sandbox_gate
import iii_sandbox_guest
import pytest

import iii_core
from iii_core.sandbox.port import RootImage
from iii_core.testing import sandbox_kit

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),  # the first of each kind runs the kit
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else; run the kit itself instead"),
]
HERE = Path(__file__).parent
USER = 65534
RANGES = {"one-user": "", "range": "nobody:1000000:65536\n"}
Results = dict[str, str | None]


@pytest.fixture(scope="module")
def results(image: RootImage) -> Iterator[Callable[[str], Results]]:
    folder = Path(tempfile.mkdtemp(prefix="iii-ordinary-"))  # pytest's own folders are private to root
    packages = (iii_core, iii_sandbox_bubblewrap, iii_sandbox_gate, iii_sandbox_guest)
    shown = {sys.base_prefix, sys.prefix, str(HERE), *(package.__path__[0] for package in packages)}
    known: dict[str, Results] = {}

    def run(kind: str) -> Results:
        if kind not in known:
            own = folder / kind
            own.mkdir(mode=0o700)
            shutil.copy(image.path, folder / "image.squashfs")
            os.chown(own, USER, USER)
            (folder / "scratch").mkdir(exist_ok=True)
            wish = {
                "uid": USER,
                "scratch": str(folder / "scratch"),
                "files": {"/etc/subuid": RANGES[kind], "/etc/subgid": RANGES[kind]},
                "show": sorted(shown),
                "tun": kind == "range",
            }
            done = subprocess.run(
                [
                    *("unshare", "--mount", sys.executable, HERE / "ordinary.py", json.dumps(wish)),
                    *(HERE / "kitrunner.py", folder / "image.squashfs", own, kind),
                ],
                env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                timeout=580,
                check=False,
            )
            lines = [json.loads(line) for line in done.stdout.splitlines()]
            known[kind] = {line["check"]: line["problem"] for line in lines}
        return known[kind]

    folder.chmod(0o755)
    yield run
    shutil.rmtree(folder)


@pytest.mark.parametrize("check", ["check_is_ordinary", *(check.__name__ for check in sandbox_kit.CHECKS)])
@pytest.mark.parametrize("kind", RANGES)
def test_conformance(results: Callable[[str], Results], kind: str, check: str) -> None:
    found = results(kind)
    assert check in found, f"the run ended after {list(found)[-1:]}"
    assert found[check] is None, found[check]
