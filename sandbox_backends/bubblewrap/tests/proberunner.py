"""Probes the bubblewrap backend and prints the result as JSON. usage: proberunner.py FOLDER"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import trio
from iii_sandbox_bubblewrap.policy import Settings
from iii_sandbox_bubblewrap.probe import probe

from iii_core.records import OpenContext


async def main() -> None:
    folder = Path(sys.argv[1])
    context = OpenContext(state_dir=folder, runtime_dir=folder / "run", home=folder, environ=dict(os.environ))
    print(json.dumps(asdict(await probe(Settings(), context)), default=str))


trio.run(main)
