"""Runs `kitrunner` as an ordinary user."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import iii_sandbox_gate
import iii_sandbox_guest
import iii_sandbox_libvirt

import iii_core

from .vmkit import HERE, HOME, python

ORDINARY = HERE.parents[1] / "bubblewrap" / "tests" / "ordinary.py"
USER = 65534


def run_kit(
    image: Path,
    folder: Path,
    checks: Sequence[str],
    settings: Mapping[str, Any],
    environ: Mapping[str, str] | None = None,
) -> dict[str, str | None]:
    """What became of each check; ``folder`` must be empty, and reachable by everybody."""
    own, home = folder / "own", folder / "home"
    for made in (own, home, folder / "scratch"):
        made.mkdir(mode=0o755)
    shutil.copy(image, folder / "image.squashfs")
    (home / "kernels").symlink_to(HOME / "kernels")
    for given in (own, home):
        os.chown(given, USER, USER)
    packages = (iii_core, iii_sandbox_gate, iii_sandbox_guest, iii_sandbox_libvirt)
    shown = {sys.base_prefix, sys.prefix, str(HERE), str(HOME), *(str(Path(m.__path__[0])) for m in packages)}
    wish = {"uid": USER, "scratch": str(folder / "scratch"), "show": sorted(shown), "tun": True}
    arguments: tuple[str | Path, ...] = (folder / "image.squashfs", home, own, json.dumps(settings), *checks)
    done = subprocess.run(
        ["unshare", "--mount", *python(ORDINARY, json.dumps(wish), HERE / "kitrunner.py", *arguments)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **(environ or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        timeout=580,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["check"]: line["problem"] for line in lines}
