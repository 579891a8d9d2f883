"""What the bubblewrap backend's tests have in common."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec.structs
from iii_sandbox_bubblewrap.driver import open_driver
from iii_sandbox_bubblewrap.policy import Settings

from iii_core.records import OpenContext
from iii_core.sandbox.agent import Agent
from iii_core.sandbox.port import Limits, RootImage, SandboxDriver, SandboxSpec
from iii_core.testing.sandbox_harness import agent_of

PROGRAMS = (
    "sh cat id sleep dd mount umount unshare chroot kill ps ip stat mkdir ls mknod ping hostname dmesg find ln rm "
    "grep wc touch yes head nc reboot sed readlink"
)


@dataclass
class Bench:
    """Opens drivers and boots sandboxes."""

    context: OpenContext
    image: RootImage
    folder: Path

    def spec(
        self, sandbox_id: str = "box", *, image: RootImage | None = None, limits: Limits | None = None
    ) -> SandboxSpec:
        return SandboxSpec(
            id=sandbox_id,
            root=image or self.image,
            writable_dir=self.folder / f"{sandbox_id}.layer",
            console=self.folder / f"{sandbox_id}.console",
            hostname="boxed",
            limits=limits or Limits(),
        )

    def driver(self, *, mode: str = "kernel") -> AbstractAsyncContextManager[SandboxDriver]:
        """``fuse``: as an ordinary user does it. ``identity``: as where the kernel cannot give images other ids."""
        settings = Settings(unprivileged=mode == "fuse")
        if mode == "identity":
            msgspec.structs.force_setattr(settings, "id_base", 0)
        return open_driver(settings, self.context)

    @asynccontextmanager
    async def sandbox(
        self, spec: SandboxSpec | None = None, *, mode: str = "kernel"
    ) -> AsyncGenerator[tuple[SandboxDriver, Agent]]:
        """One running sandbox and its agent."""
        spec = spec or self.spec()
        async with self.driver(mode=mode) as driver:
            await driver.create(spec)
            await driver.start(spec.id)
            async with agent_of(driver, spec.id) as agent:
                yield driver, agent
