"""Builds the guest agent, and the program that the conformance kit runs beside it, into the package.

They are static programs: the wheel depends on the machine's architecture, but not on its Python or C library.
"""

# hatchling is there only while a distribution is built, so a type checker does not see it:
# pyright: reportMissingImports=false, reportUntypedBaseClass=false
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROGRAMS = {
    "all": ("OUT", "iii_sandbox_guest/bin/agent"),
    "checkprog": ("CHECKPROG", "iii_sandbox_guest/bin/checkprog"),
}
"""Goals of the Makefile, with the variable that says where the program is to be, and where that is."""
HINT = "on Debian: apt-get install gcc make libc6-dev"


class AgentBuildHook(BuildHookInterface[Any]):
    """Runs ``make`` in ``agent/``. CC and CFLAGS are taken from the environment, as make does."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """For wheels, editable ones too; an sdist carries the sources."""
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        for goal, (variable, path) in PROGRAMS.items():
            build(root / "agent", goal, variable, root / path)
            build_data["artifacts"].append(f"/{path}")
        build_data["pure_python"] = False
        machine = platform.machine()
        build_data["tag"] = f"py3-none-manylinux_2_17_{machine}.musllinux_1_1_{machine}"


def build(source: Path, goal: str, variable: str, out: Path) -> None:
    """Build a program; make decides whether anything is to be done."""
    if platform.system() != "Linux":
        raise RuntimeError("the guest agent is a Linux program and can only be built on Linux")
    if shutil.which("make") is None:
        raise RuntimeError(f"building the guest agent needs make and a C compiler ({HINT})")
    fresh = out.with_name(f"{out.name}.new")
    fresh.unlink(missing_ok=True)
    out.parent.mkdir(exist_ok=True)
    done = subprocess.run(
        ["make", "-C", source, f"{variable}={fresh}", goal], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"the guest agent cannot be built ({HINT}):\n{done.stdout}{done.stderr}")
    fresh.replace(out)  # one that runs stays whole
