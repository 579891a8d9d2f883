"""The KVM paths for real, on a machine without KVM: in an emulated machine that has it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from iii_core.sandbox.port import RootImage

from .nestedkit import NestedMachine
from .vmkit import HERE, HOME

SECONDS = 540.0
pytestmark = [
    pytest.mark.integration,
    pytest.mark.full,
    pytest.mark.timeout(SECONDS + 60),
    pytest.mark.skipif(os.geteuid() != 0, reason="this machine's root is served by root alone"),
]


def test_guests_run_with_kvm(kernel: Path, image: RootImage, tmp_path: Path) -> None:
    machine = NestedMachine(kernel, tmp_path)
    try:
        said = run(machine, image)
        assert said["exit"] == "0"
        assert said["probe"]["ok"] is said["probe"]["automatic"] is True
        assert said["guest"] == {"accelerator": "kvm", "type": ["kvm"], "notes": []}
        assert said["exec"] == {"printed": "out\n", "code": 7}
        assert said["check"]["ok"] is True
        assert [check["name"] for check in said["check"]["checks"]] == ["lifecycle"]
        assert said["vsock"] == {"printed": 300_000, "code": 3, "ended": 0}
    except BaseException:
        print(machine.report())
        raise


def run(machine: NestedMachine, image: RootImage) -> dict[str, Any]:
    """What each step found, by its name."""
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, HERE / "nestedrunner.py"]
    output = machine.run([*command, HOME, image.path, "/run/nested"], SECONDS)
    steps = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    found = {step.pop("step"): step for step in steps}
    return {**found, "exit": output.split("exit ")[-1].strip()}
