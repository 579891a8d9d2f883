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
from iii_sandbox_cloud_hypervisor.policy import CAPABILITIES, Patience, Settings
from iii_sandbox_guest import agent_path

from iii_core.records import OpenContext
from iii_core.sandbox.port import RootImage, SandboxDriver, SandboxSpec
from iii_core.testing.sandbox_harness import SandboxesUnderTest

VMM = Path(__file__).parent / "fake" / "vmm.py"
QUICK = Patience(boot=50, call=25, retry=0.05, farewell=5, button=0.05, shutdown=5)


def descriptors() -> int:
    """How many this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Opens the backend on a played VMM that fails as ``faults`` say."""

    context: OpenContext
    description: Path
    image: RootImage
    folder: Path

    @property
    def log(self) -> Path:
        """What the played VMMs were called for, and what was wrong with that."""
        return self.context.runtime_dir / "calls"

    def calls(self) -> list[str]:
        """What they were called for since this was last asked."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        assert not [line for line in lines if line.startswith("wrong")], lines
        return lines

    def places(self) -> list[Path]:
        """What is left of boots."""
        return list((self.context.runtime_dir / "chv").iterdir())

    def under_test(self) -> SandboxesUnderTest:
        """For the helpers of the conformance kit."""
        return SandboxesUnderTest(open=self.open, image=self.image, folder=self.folder, capabilities=CAPABILITIES)

    def program(self, faults: dict[str, Any]) -> Path:
        """A program that stands for ``cloud-hypervisor``."""
        path = self.context.runtime_dir / "cloud-hypervisor"
        argv = [sys.executable, str(VMM), "--description", str(self.description), "--agent", str(agent_path())]
        argv += ["--log", str(self.log), "--faults", json.dumps(faults)]
        path.write_text(f'#!/bin/sh\nexec {shlex.join(argv)} "$@"\n', encoding="utf-8")
        path.chmod(0o755)
        return path

    @asynccontextmanager
    async def open(
        self, faults: dict[str, Any] | None = None, *, patience: Patience = QUICK, **settings: Any
    ) -> AsyncGenerator[SandboxDriver]:
        self.program(faults or {})
        async with self.open_as_is(patience=patience, **settings) as driver:
            yield driver

    @asynccontextmanager
    async def open_as_is(self, *, patience: Patience = QUICK, **settings: Any) -> AsyncGenerator[SandboxDriver]:
        """On the program that is there."""
        chosen = Settings(program=str(self.context.runtime_dir / "cloud-hypervisor"), **settings)
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
