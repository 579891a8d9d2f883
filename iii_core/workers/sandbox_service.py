"""Sandbox backends for managed workers: the helper process that holds them, and which of them to use."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from iii_core.errors import BackendUnavailable, SandboxError, SandboxHostDied
from iii_core.records import SandboxBackend
from iii_core.workers.check import named, require
from iii_core.workers.services import OpenBackend
from iii_core.workers.spec import AUTO_BACKEND

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager

    from iii_core.host import PluginHost
    from iii_core.sandbox.host import SandboxHost
    from iii_core.sandbox.port import SandboxNeeds

_log = logging.getLogger(__name__)


class SandboxService:
    """Opens the sandbox host when the first worker needs it, and another when that one has died."""

    def __init__(
        self,
        plugins: PluginHost,
        open_host: Callable[[], AbstractAsyncContextManager[SandboxHost]],
        nursery: trio.Nursery,
    ) -> None:
        self._records = plugins.collect(SandboxBackend)
        self._open_host = open_host
        self._nursery = nursery
        self._host: SandboxHost | None = None
        self._opening = trio.Lock()
        self._chosen: str | None = None
        self._passed_over: dict[str, str] = {}

    async def backend(self, name: str) -> OpenBackend:
        """See `iii_core.workers.services.Sandboxes.backend`."""
        async with self._opening:
            host = self._host
            if host is None:
                host = self._host = await self._nursery.start(self._keep_host)
            record = named(self._records, name) if name != AUTO_BACKEND else await self._strongest(host)
            notes = () if name != AUTO_BACKEND else tuple(self._passed_over.values())
        return OpenBackend(record, await host.driver(record.name), notes)

    async def check(self, name: str, needs: SandboxNeeds) -> None:
        """See `iii_core.workers.services.Sandboxes.check`."""
        record = named(self._records, name) if name != AUTO_BACKEND else (await self.backend(name)).record
        await trio.lowlevel.checkpoint()
        require(record, needs, self._records)

    async def _keep_host(self, *, task_status: trio.TaskStatus[SandboxHost]) -> None:
        async with self._open_host() as host:
            task_status.started(host)
            how = await host.wait_died()
            _log.error("the sandbox host died (%s); its workers will be started anew", how)
        self._host = None  # not before the block has swept what the dead one left: it would take a new one for that

    async def _strongest(self, host: SandboxHost) -> SandboxBackend:
        """The strongest backend whose probe succeeds and that may be chosen so; remembered once found."""
        if self._chosen is not None:
            return self._records[self._chosen]
        reasons: dict[str, str] = {}
        hints: list[str] = []
        by_name_only: list[str] = []
        for record in sorted(self._records.values(), key=lambda record: record.strength, reverse=True):
            try:
                verdict = await host.probe(record.name)
            except SandboxHostDied:  # that says nothing about the backend
                raise
            except SandboxError as error:
                reasons[record.name] = error.message
                hints += [error.hint] if error.hint else []
                continue
            if verdict.ok and verdict.automatic:
                self._chosen = record.name
                self._passed_over = {
                    other: f"{other} is not chosen by itself: {reasons[other]}" for other in by_name_only
                }
                return record
            by_name_only += [record.name] if verdict.ok else []
            reasons[record.name] = verdict.reason
            hints += [verdict.hint] if verdict.hint else []
            if verdict.ok:
                hints.append(f"'sandbox: {{backend: {record.name}}}' uses {record.name} nevertheless")
        raise BackendUnavailable(
            "no sandbox backend works on this machine: "
            + ("; ".join(f"{name}: {reason}" for name, reason in reasons.items()) or "none is installed"),
            hint="; ".join(hints) or "install one, such as iii-sandbox-bubblewrap",
            details={"backends": reasons},
        )


@asynccontextmanager
async def open_sandboxes(
    plugins: PluginHost, open_host: Callable[[], AbstractAsyncContextManager[SandboxHost]]
) -> AsyncGenerator[SandboxService]:
    """The sandbox service of one engine; at the end the sandbox host ends, and with it every sandbox.

    ``open_host`` opens a sandbox host; it is called again after one has died.
    """
    async with trio.open_nursery() as nursery:
        yield SandboxService(plugins, open_host, nursery)
        nursery.cancel_scope.cancel()
