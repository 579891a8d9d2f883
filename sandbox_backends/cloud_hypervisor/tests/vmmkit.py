"""What the tests of this backend have in common."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iii_sandbox_cloud_hypervisor.driver import open_driver
from iii_sandbox_cloud_hypervisor.policy import Patience, Settings
from iii_sandbox_guest import agent_path

from iii_core.records import OpenContext
from iii_core.sandbox.port import RootImage, SandboxDriver, SandboxSpec

VMM = Path(__file__).parent / "fake" / "vmm.py"
QUICK = Patience(boot=20, call=5, retry=0.05, farewell=1, button=0.05, shutdown=1)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Opens the backend on a played VMM that fails as ``faults`` say."""

    context: OpenContext
    description: Path
    image: RootImage
    folder: Path

    def program(self, faults: dict[str, Any]) -> Path:
        """A program that stands for ``cloud-hypervisor``."""
        path = self.context.runtime_dir / "cloud-hypervisor"
        argv = [sys.executable, str(VMM), "--description", str(self.description), "--agent", str(agent_path())]
        argv += ["--faults", json.dumps(faults)]
        path.write_text(f'#!/bin/sh\nexec {shlex.join(argv)} "$@"\n', encoding="utf-8")
        path.chmod(0o755)
        return path

    @asynccontextmanager
    async def open(
        self, faults: dict[str, Any] | None = None, *, patience: Patience = QUICK, **settings: Any
    ) -> AsyncGenerator[SandboxDriver]:
        chosen = Settings(program=str(self.program(faults or {})), **settings)
        async with open_driver(chosen, self.context, patience=patience) as driver:
            yield driver

    def spec(self, sandbox_id: str = "one", **changes: Any) -> SandboxSpec:
        spec = SandboxSpec(
            id=sandbox_id,
            root=self.image,
            writable_dir=self.folder / f"{sandbox_id}.layer",
            console=self.folder / f"{sandbox_id}.console",
            hostname="box",
        )
        return replace(spec, **changes)

    def console(self, sandbox_id: str = "one") -> str:
        return self.spec(sandbox_id).console.read_text(encoding="utf-8", errors="replace")
